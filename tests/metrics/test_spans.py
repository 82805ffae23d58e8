"""SQuAD's scores as its evaluation script defines them, and the best span by trying all."""

import collections
import re
import string

import numpy as np
import pytest

from jaxformer.metrics.spans import best_span, exact_match, f1


def normalize_answer(s):
    """As in SQuAD's evaluate-v2.0.py."""
    regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
    exclude = set(string.punctuation)
    text = "".join(ch for ch in s.lower() if ch not in exclude)
    return " ".join(re.sub(regex, " ", text).split())


def compute_f1(gold, pred):
    """As in SQuAD's evaluate-v2.0.py."""
    gold, pred = normalize_answer(gold).split(), normalize_answer(pred).split()
    same = sum((collections.Counter(gold) & collections.Counter(pred)).values())
    if not gold or not pred:
        return int(gold == pred)
    if same == 0:
        return 0
    precision, recall = same / len(pred), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


PHRASES = [
    "The Normans",
    "normans.",
    "the  Norman, conquest of an England",
    "in 1066",
    "1066!",
    "",
    "a",
    "an  -- the",
    "Él",
]


@pytest.mark.parametrize("answer", PHRASES)
def test_scores_are_those_of_the_script(answer):
    for other in PHRASES:
        for references in ([other], [other, "in England"], ["1066", other, other]):
            assert exact_match(answer, references) == max(
                normalize_answer(answer) == normalize_answer(r) for r in references
            )
            assert f1(answer, references) == pytest.approx(max(compute_f1(r, answer) for r in references))
    assert f1(answer, []) == exact_match(answer, []) == float(not normalize_answer(answer))


@pytest.mark.parametrize("size, longest", [(1, 1), (1, 9), (12, 1), (12, 4), (12, 30)])
def test_the_best_span_is_the_best_of_all(size, longest):
    starts, ends = np.random.default_rng(size).normal(size=(2, size))
    spans = [(starts[i] + ends[j], i, j) for i in range(size) for j in range(i, min(size, i + longest))]
    assert best_span(starts, ends, longest) == max(spans)
