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
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import summaries
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class LabelledSentences:
    """The encoded sentences of a document, without special tokens, and which of them form its summary."""

    tokens: tuple[np.ndarray, ...]
    """Tokens of each sentence, int32 [tokens]."""
    labels: np.ndarray
    """Labels of the sentences that fit in a row, int32 [sentences]: 1 for sentences of the oracle summary (those most
    similar to the reference summary), and 0 for others.
    """
    size: int
    """Number of characters in the document, which is its size in the cache."""


class SentenceRow(NamedTuple):
    """Sentences of one document, laid out with special tokens in a batch row."""

    tokens: np.ndarray
    """Tokens of the row, int32 [length]. For BERT: [CLS] sentence [SEP] [CLS] sentence [SEP] and so on."""
    token_types: np.ndarray
    """Token type of each token, int32 [length]: 0 in the first sentence, 1 in the second, 0 in the third and so on."""
    positions: np.ndarray
    """Index of the first token of each sentence that fits in the row, int32 [sentences]. For BERT, this token is [CLS].
    """
    whole: bool
    """Whether the row contains the complete document."""


@dataclasses.dataclass(frozen=True)
class SummarySentences(Task[LabelledSentences]):
    """Predicts for each sentence of a document whether it is part of the summary.

    The targets are an oracle summary: the sentences that are most similar to the summary in the source, found greedily
    by ROUGE. A document that is too long is truncated at its end, and the oracle chooses among the sentences that fit.
    A document gives no example if it has fewer than two sentences, or no word in common with its summary.

    Rows: `tokens` and `token_types` int32 [batch, length], and the `segments` and `position_ids` that the data pipeline
    adds. Each sentence has the special tokens of the tokenizer, such as [CLS] and [SEP], and token types alternate
    between sentences. `sentence_positions` int32 [batch, sentences_per_row] are the indices of the first token of each
    sentence. `targets` int32 of the same shape are 1 for the sentences of the oracle, and `weights` float32 are 1 for
    all sentences.
    """

    length: int = 512
    """Number of tokens per row."""
    sentences_per_row: int = 64
    """Maximum number of sentences per row."""
    oracle_sentences: int = 3
    """Maximum number of sentences that are labeled as the summary of a document."""
    document: str = "document"
    """Name of the column with the document: a text, or a list of sentences."""
    summary: str = "summary"
    """Name of the column with the summary."""

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

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], str]:
        """Returns the sentences of a document, without those that contain no word, and its summary."""
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
        """Lays out the sentences of a document in a batch row. See the function `lay_out`."""
        return lay_out(sentences[: self.sentences_per_row], tokenizer, self.length)


def lay_out(sentences: Sequence[np.ndarray], tokenizer: Tokenizer, length: int) -> SentenceRow:
    """Concatenates the sentences of a document with their special tokens.

    Args:
      sentences: tokens of each sentence without special tokens, int32 [tokens].
      tokenizer: tokenizer, which determines the special tokens and where they are added.
      length: maximum number of tokens. The last sentence is truncated if it does not fit completely.
    """
    template = tokenizer.template("encoder")
    tokens, types, positions, size = [], [], [], 0
    for number, sentence in enumerate(sentences):
        room = length - size - template.added()
        if room < 1:
            break
        part = template.lay_out(sentence[:room]).tokens
        tokens.append(part)
        types.append(np.full(len(part), number % 2, np.int32))
        positions.append(size)
        size += len(part)
    whole = size == sum(map(len, sentences)) + len(sentences) * template.added()
    none = [np.zeros(0, np.int32)]
    return SentenceRow(
        np.concatenate(tokens or none), np.concatenate(types or none), np.array(positions, np.int32), whole
    )
