"""Word and character error rates of transcripts: the edit distance to a reference, relative to its length.

The state of the metric is three pairs of counts, so it is exact on any number of processes.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.base import Task
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, DocumentMetric

NAMES = ("wer", "cer", "wer_normalized")

Counts = tuple[tuple[int, int], ...]
"""Pairs of the number of errors and the length of the references, in the order of `NAMES`."""


def edit_distance(output: Sequence[Any], reference: Sequence[Any]) -> int:
    """Computes the Levenshtein distance: the smallest number of insertions, deletions and substitutions that turn one
    sequence into the other.
    """
    ids: dict[Any, int] = {}
    one, other = (np.array([ids.setdefault(item, len(ids)) for item in part], np.int64) for part in (output, reference))
    index = np.arange(len(other) + 1)
    row = index
    for number, item in enumerate(one, 1):
        new = np.minimum(row[1:] + 1, row[:-1] + (other != item))
        # An insertion adds 1 for each step to the right.
        row = np.minimum.accumulate(np.concatenate([[number], new]) - index) + index
    return int(row[-1])


def words(text: str) -> list[str]:
    """Splits a text into words at spaces. Runs of white space count as one space."""
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]


def normalized(text: str) -> str:
    """Returns a text in lower case, in which everything except letters, digits and apostrophes is a space."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return re.sub(r"[^\w']+|_", " ", folded).strip()


def word_error_rate(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Computes the word error rate of all texts together, like jiwer's `wer`.

    If the references have no words, it is the number of words in the outputs.
    """
    return _rate(*_count(outputs, references, words))


def character_error_rate(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Computes the character error rate of all texts together, like jiwer's `cer`. Spaces count as characters, except
    at the ends of a text.
    """
    return _rate(*_count(outputs, references, str.strip))


def _count(outputs: Sequence[str], references: Sequence[str], split: Callable[[str], Sequence]) -> tuple[int, int]:
    pairs = [(split(output), split(reference)) for output, reference in zip(outputs, references, strict=True)]
    return sum(edit_distance(*pair) for pair in pairs), sum(len(reference) for _, reference in pairs)


def _rate(errors: int, length: int) -> float:
    return errors / length if length else float(errors)


@dataclasses.dataclass(frozen=True)
class ErrorRates(DocumentMetric[Counts]):
    """Word and character error rates of the transcripts that a model writes for the first held-out documents.

    `wer` and `cer` compare the texts as they are. `wer_normalized` ignores case and punctuation.
    """

    count: int
    """Maximum number of documents to score."""
    generate: Callable[[Context, Sequence[Mapping[str, Any]]], Sequence[str]]
    """Function that writes a transcript for each example of the source."""

    names = NAMES

    def check(self, task: Task) -> None:
        if not task.writes:
            raise InputError(
                f"objective.scored={self.count}: data.task={type(task).__name__} has no text to compare answers with; "
                "expected 0, or a task such as Transcription"
            )

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[int]:
        found: list[int] = []
        for index in range(len(documents)):
            if len(found) == self.count:
                break
            usable = context.task.encode(documents[index], context.tokenizer).values is not None
            if usable and context.task.written(documents[index], context.tokenizer) is not None:
                found.append(index)
        return found

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Counts:
        written = read_each(documents, lambda one: context.task.written(one, context.tokenizer), indices)
        outputs = self.generate(context, [documents[index] for index in indices])
        references = [one.reference for one in written]
        plain_outputs, plain_references = (list(map(normalized, texts)) for texts in (outputs, references))
        return (
            _count(outputs, references, words),
            _count(outputs, references, str.strip),
            _count(plain_outputs, plain_references, words),
        )

    def merge(self, state: Counts, other: Counts) -> Counts:
        return tuple((one[0] + two[0], one[1] + two[1]) for one, two in zip(state, other, strict=True))

    def compute(self, state: Counts) -> dict[str, float]:
        return {name: _rate(*counts) for name, counts in zip(NAMES, state, strict=True)}
