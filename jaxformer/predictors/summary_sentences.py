"""Summarises documents by selecting their sentences with the highest scores."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxformer.data.tasks.summary_sentences import SentenceRow, lay_out
from jaxformer.data.transforms import summaries
from jaxformer.errors import InputError
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.padding import padded, stacked

MAX_EXAMPLES = 4
"""Maximum number of held-out documents that `demonstrate` summarises."""


@dataclasses.dataclass(frozen=True)
class Summary(Answer):
    """Extractive summary: the selected sentences of a document."""

    sentences: tuple[str, ...]
    """Selected sentences, in the order of the document."""
    indices: tuple[int, ...]
    """Indices of the selected sentences in the document."""
    probabilities: tuple[float, ...]
    """Probability that each selected sentence belongs to the summary."""
    read: int
    """Number of sentences, from the start of the document, that fit in the model's input."""
    total: int
    """Number of sentences in the document."""
    whole: bool
    """Whether the whole document fits in the model's input."""

    @property
    def text(self) -> str:
        """Text of the summary: the selected sentences joined by spaces."""
        return " ".join(self.sentences)

    def __str__(self) -> str:
        note = f"(of a text that is too long: {self.read} of {self.total} sentences were read)"
        return "\n".join(self.sentences if self.whole else [*self.sentences, note])


@dataclasses.dataclass(frozen=True, eq=False)
class SummaryPredictor(Predictor[Classifier]):
    """Predictor that selects the sentences of a document that summarise it."""

    num_sentences: int = 3
    """Maximum number of sentences in a summary."""
    block_trigrams: bool = True
    """Whether to reject a sentence that has three successive words in common with a sentence already selected for the
    summary.
    """
    alternate_types: bool = True
    """Whether the token types of successive sentences alternate between 0 and 1. If False, all are 0."""
    sentence_pooling: Literal["first", "mean"] = "first"
    """Score of a sentence: the logit of its `first` token, or the `mean` of the logits of all its tokens."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts documents to the arguments of the model. Long documents are truncated."""
        rows = [lay_out(self._tokens(one), self.tokenizer, self.model.max_length) for one in _documents(texts)]
        return stacked(
            [row.tokens for row in rows], [row.token_types for row in rows] if self.alternate_types else None
        )

    def predict(self, texts: Sequence[str]) -> list[Summary]:
        """Summarises each text. Sentences end at punctuation and at line ends.

        Raises:
          InputError: If a text has no words.
        """
        return self.summarize(_documents(texts), self.model.max_length)

    def summarize(self, documents: Sequence[Sequence[str]], length: int) -> list[Summary]:
        """Summarises each document.

        Args:
          documents: Sentences of each document, at least one.
          length: Maximum number of tokens to read of a document.
        """
        rows = [lay_out(self._tokens(sentences), self.tokenizer, length) for sentences in documents]
        types = [row.token_types for row in rows] if self.alternate_types else None
        scores: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for places, batch in padded([row.tokens for row in rows], length, types):
            logits = np.asarray(_logits(self.model, self.params, batch))
            for row, place in enumerate(places):
                scores[place] = self._scores(logits[row, : len(rows[place].tokens)], rows[place].positions)
        return [self._summary(*parts) for parts in zip(documents, rows, scores, strict=True)]

    def _summary(self, sentences: Sequence[str], row: SentenceRow, logits: np.ndarray) -> Summary:
        chosen = self.choose(logits, sentences)
        probabilities = np.asarray(jax.nn.sigmoid(logits[chosen]))
        return Summary(
            sentences=tuple(sentences[index] for index in chosen),
            indices=tuple(chosen),
            probabilities=tuple(map(float, probabilities)),
            read=len(row.positions),
            total=len(sentences),
            whole=row.whole,
        )

    def _scores(self, logits: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Computes the score of each sentence in a document from the logits of its tokens. Returns [sentences].

        Args:
          logits: logits of the tokens up to the end of the last sentence, [length].
          positions: index of the first token of each sentence, [sentences].
        """
        if self.sentence_pooling == "first":
            return logits[positions]
        return np.add.reduceat(logits, positions) / np.diff(positions, append=len(logits))

    def choose(self, logits: np.ndarray, sentences: Sequence[str]) -> list[int]:
        """Selects the sentences of a summary by their scores. Returns their indices in ascending order.

        Args:
          logits: scores of the sentences that fit in the model's input, the first ones of the document.
          sentences: all sentences of the document.
        """
        return summaries.choose(logits, sentences, self.num_sentences, self.block_trigrams)

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Summarises the first documents of a held-out batch. Returns one line per document: the selected sentences,
        followed by the sentences that the training targets (the oracle) select if they differ.
        """
        batch = {name: np.asarray(array)[:MAX_EXAMPLES] for name, array in batch.items()}
        names = ("tokens", "segments", "position_ids", *["token_types"] * self.alternate_types)
        logits = np.asarray(_logits(self.model, self.params, {name: batch[name] for name in names}))
        lines = []
        for row, tokens in enumerate(batch["tokens"]):
            segments = batch["segments"][row]
            positions = batch["sentence_positions"][row][batch["weights"][row] > 0]
            for document in np.unique(segments[positions]):
                starts = positions[segments[positions] == document]
                stops = [*starts[1:], np.flatnonzero(segments == document)[-1] + 1]
                texts = [self._text(tokens[start:stop]) for start, stop in zip(starts, stops, strict=True)]
                right = np.flatnonzero(batch["targets"][row][np.isin(batch["sentence_positions"][row], starts)])
                chosen = self.choose(self._scores(logits[row, : stops[-1]], starts), texts)
                said, wanted = (" ".join(texts[index] for index in some) for some in (chosen, right))
                lines.append(f"[{said}]" if said == wanted else f"[{said}], the oracle's: [{wanted}]")
        return lines[:MAX_EXAMPLES]

    def _tokens(self, sentences: Sequence[str]) -> list[np.ndarray]:
        return self.tokenizer.encode_batch(list(sentences))

    def _text(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens[~self.tokenizer.is_special[tokens]])


def _documents(texts: Sequence[str]) -> list[list[str]]:
    """Splits each text into sentences. Raises InputError if a text has none."""
    documents = [summaries.split_document(text) for text in texts]
    for text, sentences in zip(texts, documents, strict=True):
        if not sentences:
            raise InputError(f"{text[:60]!r}: no words to summarise; expected some sentences")
    return documents


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Classifier, params: Any, batch: Mapping[str, np.ndarray]) -> jax.Array:
    """Computes the logit of each token, [batch, length]."""
    return model.apply({"params": params}, **batch).logits[..., 0]
