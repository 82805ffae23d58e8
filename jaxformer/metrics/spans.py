"""Extractive question answering: selection of the best answer span, and SQuAD scores (Rajpurkar et al. 2016, §6.1;
Rajpurkar et al. 2018).
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.sources.sources import read_each
from jaxformer.metrics.base import Context, DocumentMetric
from jaxformer.metrics.means import Mean

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def best_span(starts: np.ndarray, ends: np.ndarray, longest: int) -> tuple[float, int, int]:
    """Finds the answer span with the highest sum of start score and end score. Returns this sum, and the first and the
    last position of the span (inclusive).

    Args:
      starts: score of each position as the start of the answer, float [positions]; -inf where a span may not begin.
      ends: score of each position as the end of the answer, float [positions].
      longest: maximum number of positions in a span.
    """
    best = (-np.inf, 0, 0)
    for more in range(min(longest, len(starts))):
        sums = starts[: len(starts) - more] + ends[more:]
        place = int(np.argmax(sums))
        if sums[place] > best[0]:
            best = (float(sums[place]), place, place + more)
    return best


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Returns 1 if the answer equals a reference, ignoring case, punctuation, articles and spaces; otherwise 0. Without
    references, only the empty answer is correct.
    """
    return float(any(_normalized(answer) == _normalized(reference) for reference in references or [""]))


def f1(answer: str, references: Sequence[str]) -> float:
    """Returns the F1 score of the words in an answer, from 0 to 1: the highest score over all references. Without
    references, only the empty answer is correct.
    """
    return max(_f1(_normalized(answer).split(), _normalized(reference).split()) for reference in references or [""])


SCORES = {"exact_match": exact_match, "f1": f1}


@dataclasses.dataclass(frozen=True)
class AnswerScores(DocumentMetric[dict[str, Mean]]):
    """SQuAD exact match and F1 of predicted answers, from 0 to 100."""

    answer: Callable[[Context, Sequence[tuple[str, str]]], Sequence[str]]
    """Function that takes the context and pairs of a question and a text, and returns the answer that the model finds
    for each pair.
    """
    count: int | None = None
    """Number of questions to score, from the start of the data. If None, all are scored."""

    names = tuple(SCORES)
    higher_is_better = True

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> range:
        return range(len(documents) if self.count is None else min(self.count, len(documents)))

    def score(
        self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]
    ) -> dict[str, Mean]:
        columns = read_each(documents, context.task.read, indices)
        answers = self.answer(context, [(question, text) for question, text, _ in columns])
        references = [[text for text, _ in right] for *_, right in columns]
        pairs = list(zip(answers, references, strict=True))
        return {
            name: Mean(np.array(sum(score(*pair) for pair in pairs), np.float64), len(pairs))
            for name, score in SCORES.items()
        }

    def compute(self, state: dict[str, Mean]) -> dict[str, float]:
        return {name: 100 * float(mean.value) for name, mean in state.items()}


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    same = (collections.Counter(answer) & collections.Counter(reference)).total()
    return 2 * same / (len(answer) + len(reference))
