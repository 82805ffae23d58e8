"""Extractive summarization task: predicts which sentences of a document form its summary (Liu & Lapata 2019)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import summaries
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class LabelledSentences:
    """The encoded sentences of a document, without special tokens, and which of them form its summary."""

    tokens: tuple[np.ndarray, ...]
    """Tokens of each sentence, int32 [tokens]."""
    labels: np.ndarray
    """Labels of the sentences that fit in a batch row, int32 [sentences]: 1 for a sentence of the oracle summary (the
    sentences most similar to the reference summary), 0 for other sentences.
    """
    size: int
    """Number of characters of all sentences. The document cache uses it to estimate memory use."""


class SentenceRow(NamedTuple):
    """Token ids of the sentences of one document with special tokens, as they appear in a batch row."""

    tokens: np.ndarray
    """Tokens of the row, int32 [length]. For BERT: [CLS] sentence [SEP] [CLS] sentence [SEP] and so on."""
    token_types: np.ndarray
    """Token type of each token, int32 [length]: 0 in the first sentence, 1 in the second, 0 in the third and so on."""
    positions: np.ndarray
    """Index of the first token of each sentence that fits in the row, int32 [sentences]. For BERT, this token is [CLS].
    """
    whole: bool
    """Whether all sentences fit completely. False if sentences were truncated or left out."""


@dataclasses.dataclass(frozen=True)
class SummarySentences(Task[LabelledSentences]):
    """Predicts for each sentence of a document whether it is part of the summary.

    The targets are an oracle summary: the sentences that are most similar to the document's reference summary, selected
    greedily by ROUGE. A document that does not fit is truncated at its end, and only sentences that fit can be
    selected. A document yields no example if fewer than two sentences fit, or if they have no word in common with the
    summary.

    A batch is a dict of arrays: `tokens`, `token_types`, `segments` and `position_ids` int32 [batch, length];
    `sentence_positions` and `targets` int32 and `weights` float32 [batch, sentences_per_row]. Special tokens such as
    [CLS] and [SEP] surround each sentence, and token types alternate between 0 and 1 from sentence to sentence.
    `sentence_positions` are the indices of the first token of each sentence. `targets` are 1 for oracle sentences, and
    `weights` are 1 for all sentences and 0 for padding.
    """

    length: int = 512
    """Number of tokens per batch row."""
    sentences_per_row: int = 64
    """Maximum number of sentences per batch row. Further sentences of a document are left out."""
    oracle_sentences: int = 3
    """Maximum number of sentences that are labeled as the summary of a document."""
    document: str = "document"
    """Name of the dataset column with the document: a text, or a list of sentences."""
    summary: str = "summary"
    """Name of the dataset column with the reference summary."""

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 4)
        fields.at_least("data.task.sentences_per_row", self.sentences_per_row, 2)
        fields.at_least("data.task.oracle_sentences", self.oracle_sentences, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        tokens, sentences = Feature(self.length), Feature(self.sentences_per_row)
        return {
            "tokens": tokens,
            "token_types": tokens,
            "sentence_positions": dataclasses.replace(sentences, offset=True),
            "targets": sentences,
            "weights": dataclasses.replace(sentences, dtype="float32"),
        }

    @property
    def requirement(self) -> str:
        return f"document of two sentences in {self.document!r} with words of its {self.summary!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, "encoder", self.length)
        if isinstance(tokenizer.template("encoder").single[0].content, str):
            raise InputError(
                "tokenizer: its template has no special token before a text, at which a sentence is scored; expected "
                "one with a template such as [CLS] A [SEP]"
            )

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.first_words(" ".join(self.read(example)[0]), 50),)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        sentences, summary = self.read(example)
        return Demonstration((" ".join(sentences),), summary)

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], str]:
        """Returns the sentences of a document that contain at least one word, and the text of its summary."""
        found = columns.value(example, self.document, "data.task.document")
        if isinstance(found, str):
            sentences = summaries.split_document(columns.text(example, self.document, "data.task.document"))
        else:
            sentences = columns.strings(example, self.document, "data.task.document")
            sentences = [sentence.strip() for sentence in sentences if summaries.words(sentence)]
        return sentences, columns.text(example, self.summary, "data.task.summary")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> LabelledSentences:
        sentences, summary = self.read(example)
        tokens = tokenizer.encode_batch(sentences[: self.sentences_per_row]) if sentences else []
        count = len(self.lay_out(tokens, tokenizer).positions)
        labels = np.zeros(count, np.int32)
        labels[summaries.oracle(sentences[:count], summary, self.oracle_sentences)] = 1
        return LabelledSentences(tuple(tokens[:count]), labels, sum(map(len, sentences)))

    def examples(self, document: LabelledSentences, visit: Visit[LabelledSentences]) -> list[Example]:
        if len(document.labels) < 2 or not document.labels.any():
            return []
        row = self.lay_out(document.tokens, visit.tokenizer)
        return [
            {
                "tokens": row.tokens,
                "token_types": row.token_types,
                "sentence_positions": row.positions,
                "targets": document.labels,
                "weights": np.ones(len(document.labels), np.float32),
            }
        ]

    def lay_out(self, sentences: Sequence[np.ndarray], tokenizer: Tokenizer) -> SentenceRow:
        """Concatenates the sentences of a document with special tokens, up to `sentences_per_row` sentences and
        `length` tokens. See the function `lay_out`.
        """
        return lay_out(sentences[: self.sentences_per_row], tokenizer, self.length)


def lay_out(sentences: Sequence[np.ndarray], tokenizer: Tokenizer, length: int) -> SentenceRow:
    """Concatenates the sentences of a document, each with its special tokens, such as [CLS] and [SEP].

    Args:
      sentences: tokens of each sentence without special tokens, int32 [tokens].
      tokenizer: tokenizer, which determines the special tokens and where they are added.
      length: maximum number of tokens. The last sentence is truncated if it does not fit completely, and the sentences
        after it are left out.
    """
    template = tokenizer.template("encoder")
    tokens, types, positions, size = [], [], [], 0
    for number, sentence in enumerate(sentences):
        room = length - size - template.num_special_tokens()
        if room < 1:
            break
        part = template.lay_out(sentence[:room]).tokens
        tokens.append(part)
        types.append(np.full(len(part), number % 2, np.int32))
        positions.append(size)
        size += len(part)
    whole = size == sum(map(len, sentences)) + len(sentences) * template.num_special_tokens()
    none = [np.zeros(0, np.int32)]
    return SentenceRow(
        np.concatenate(tokens or none), np.concatenate(types or none), np.array(positions, np.int32), whole
    )
