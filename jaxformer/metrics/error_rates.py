"""Word and character error rates of transcripts: the edit distance to the reference, divided by the reference length.

The state of the metric consists of counts of errors and lengths, so the result is exact on any number of processes.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.sources.sources import located, read_each
from jaxformer.data.tasks.base import Task
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, DocumentMetric

NAMES = ("wer", "cer", "wer_normalized")

Counts = tuple[tuple[int, int], ...]
"""For each metric in `NAMES`: the number of errors, and the total length of the references in words or characters."""


def edit_distance(output: Sequence[Any], reference: Sequence[Any]) -> int:
    """Computes the Levenshtein distance: the smallest number of insertions, deletions and substitutions that turn
    `output` into `reference`.
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
    """Splits a text into words at spaces. A run of two or more white-space characters counts as one space."""
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]


def normalized(text: str) -> str:
    """Converts a text to lower case, and replaces each run of characters other than letters, digits and apostrophes by
    a space.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return re.sub(r"[^\w']+|_", " ", folded).strip()


def word_error_rate(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Computes the word error rate as jiwer's `wer` does: the number of word errors in all texts, divided by the number
    of words in all references.

    If the references have no words, returns the number of words in the outputs.
    """
    return _rate(*_count(outputs, references, words))


def character_error_rate(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Computes the character error rate as jiwer's `cer` does: the number of character errors in all texts, divided by
    the number of characters in all references. Spaces count as characters, except at the ends of a text.
    """
    return _rate(*_count(outputs, references, str.strip))


def _count(outputs: Sequence[str], references: Sequence[str], split: Callable[[str], Sequence]) -> tuple[int, int]:
    pairs = [(split(output), split(reference)) for output, reference in zip(outputs, references, strict=True)]
    return sum(edit_distance(*pair) for pair in pairs), sum(len(reference) for _, reference in pairs)


def _rate(errors: int, length: int) -> float:
    return errors / length if length else float(errors)


def first_recordings(context: Context, documents: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Returns the indices of the first `count` documents whose sound can be used, and which have a reference text."""
    found: list[int] = []
    for index in range(len(documents)):
        if len(found) == count:
            break
        with located(documents, index):
            usable = context.task.encode(documents[index], context.tokenizer).values is not None
            if usable and context.task.written(documents[index], context.tokenizer) is not None:
                found.append(index)
    return found


@dataclasses.dataclass(frozen=True)
class ErrorRates(DocumentMetric[Counts]):
    """Word and character error rates of the transcripts that a model generates for the first `count` held-out
    documents.

    `wer` and `cer` compare the texts as they are. `wer_normalized` ignores case and punctuation.
    """

    count: int
    """Maximum number of documents to score, from the start of the data."""
    generate: Callable[[Context, Sequence[Mapping[str, Any]]], Sequence[str]]
    """Function that takes the context and examples of the data source, and returns a generated transcript for each
    example.
    """

    names = NAMES

    def check(self, task: Task) -> None:
        if not task.writes:
            raise InputError(
                f"objective.scored={self.count}: data.task={type(task).__name__} has no text to compare answers with; "
                "expected 0, or a task such as Transcription"
            )

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[int]:
        return first_recordings(context, documents, self.count)

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
