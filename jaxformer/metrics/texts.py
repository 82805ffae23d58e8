"""BLEU, chrF and ROUGE of written texts, by sacreBLEU and rouge-score, as sums that merge exactly.

Papineni et al. 2002, Popović 2015, Lin 2004.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxformer.errors import InputError
from jaxformer.metrics.means import Mean

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our names of its kinds, and those of rouge-score."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Which written texts are scored, and by what."""

    prefix: str = ""
    """What the inputs begin with that are meant, such as "summarize: ", and the names of the metrics after it; "" means
    all inputs."""
    by: tuple[Literal["bleu", "chrf", "rouge"], ...] = ("bleu", "chrf")
    """BLEU and chrF of all texts together; ROUGE-1, -2 and -L, F-measures of stems of English words, on average."""

    def __post_init__(self):
        if not self.by:
            raise InputError("objective.scores.by: empty; expected bleu, chrf or rouge")

    @property
    def label(self) -> str:
        """What the names of its metrics begin with: "summarize_"."""
        return re.sub(r"\W+", "_", self.prefix.lower() + " ").lstrip("_")

    @property
    def names(self) -> tuple[str, ...]:
        """Its metrics, behind the label."""
        return tuple(name for kind in self.by for name in (ROUGE if kind == "rouge" else (kind,)))


def text_scores(
    outputs: Sequence[str], references: Sequence[str], by: Sequence[str] = ("bleu", "chrf")
) -> dict[str, Mean]:
    """Counts from which `scores` computes what the corpus' scores are; they merge by addition.

    Args:
      outputs: what was written.
      references: what should have been, as many; perhaps none.
      by: of bleu, chrf and rouge.

    Returns:
      `bleu` and `chrf`, counts of matching n-grams, and `rouge_1`, `rouge_2`, `rouge_l`: sums over the texts, and their
      number for a weight.
    """
    sums = {}
    for name in by:
        sums |= _rouge_sums(outputs, references) if name == "rouge" else {name: _counts(name, outputs, references)}
    return {name: Mean(values, np.float64(len(outputs))) for name, values in sums.items()}


def scores(means: Mapping[str, Mean]) -> dict[str, float]:
    """Scores, each from 0 to 100, where their counts are among the means; 0 where no text was scored."""
    return {name: _score(name, means[name]) for name in ("bleu", "chrf", *ROUGE) if name in means}


def _score(name: str, mean: Mean) -> float:
    if name in ROUGE:
        return 100 * float(mean.value)
    return _corpus_metrics()[name]._compute_score_from_stats(np.rint(mean.sum).astype(int).tolist()).score


def _counts(name: str, outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
    counts = _corpus_metrics()[name]._extract_corpus_statistics(["", *outputs], [["", *references]])
    return np.sum(counts, axis=0, dtype=np.float64)


def _rouge_sums(outputs: Sequence[str], references: Sequence[str]) -> dict[str, np.float64]:
    found = [_rouge().score(*pair) for pair in zip(references, outputs, strict=True)]
    return {name: np.float64(sum(score[kind].fmeasure for score in found)) for name, kind in ROUGE.items()}


# Only who asks for scores needs these libraries.


@functools.cache
def _corpus_metrics():
    import sacrebleu

    # The outputs are not tokenized, however many of them end in a lone full stop.
    return {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF()}


@functools.cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE.values()), use_stemmer=True)
