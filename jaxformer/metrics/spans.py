"""Answers as spans of a text: the best one, and SQuAD's scores (Rajpurkar et al. 2016, §6.1; 2018 for no answers)."""

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
    """The highest sum of two scores, and where: the first place and the last of a span of up to `longest` places.

    Args:
      starts: float [n], of each place as the first; -inf where a span may not begin.
      ends: float [n], of each place as the last.
      longest: places of a span, at most.
    """
    best = (-np.inf, 0, 0)
    for more in range(min(longest, len(starts))):
        sums = starts[: len(starts) - more] + ends[more:]
        place = int(np.argmax(sums))
        if sums[place] > best[0]:
            best = (float(sums[place]), place, place + more)
    return best


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is one of the references, apart from case, punctuation, articles and spaces; otherwise 0."""
    return float(any(_normalized(answer) == _normalized(reference) for reference in references or [""]))


def f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of the answer's words and those of a reference; no references mean that there is no answer."""
    return max(_f1(_normalized(answer).split(), _normalized(reference).split()) for reference in references or [""])


SCORES = {"exact_match": exact_match, "f1": f1}


@dataclasses.dataclass(frozen=True)
class AnswerScores(DocumentMetric[dict[str, Mean]]):
    """SQuAD's exact match and F1 of the answers to whole documents, from 0 to 100."""

    answer: Callable[[Context, Sequence[tuple[str, str]]], Sequence[str]]
    """The answers to pairs of a question and its text."""
    count: int | None = None
    """Questions to score, the first ones; None scores all."""

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
