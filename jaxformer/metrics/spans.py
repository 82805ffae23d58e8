"""Answers as spans of a text: the best one, and SQuAD's scores (Rajpurkar et al. 2016, §6.1; 2018 for no answers)."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

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
    """1 where the answer is one of the references, but for case, punctuation, articles and spaces; otherwise 0."""
    return float(any(_normalized(answer) == _normalized(reference) for reference in references or [""]))


def f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of the answer's words and those of a reference; no references mean that there is no answer."""
    return max(_f1(_normalized(answer).split(), _normalized(reference).split()) for reference in references or [""])


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    same = (collections.Counter(answer) & collections.Counter(reference)).total()
    return 2 * same / (len(answer) + len(reference))
