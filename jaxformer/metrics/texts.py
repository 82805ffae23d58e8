"""BLEU, chrF and ROUGE scores of generated texts, computed by sacreBLEU and rouge-score.

References: Papineni et al. 2002, Popović 2015, Lin 2004. The state of these metrics consists of the texts themselves,
since corpus-level scores are computed from all texts together.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.base import Task
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, DocumentMetric

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Maps names of ROUGE metrics to their names in the package rouge-score."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Selects the generated texts to score by the prefix of their inputs, and the metrics to compute."""

    prefix: str = ""
    """Only examples whose input begins with this prefix are scored, such as "summarize: ". The names of the metrics
    also begin with it. If empty, all examples are scored.
    """
    by: tuple[Literal["bleu", "chrf", "rouge"], ...] = ("bleu", "chrf")
    """Metrics to compute: corpus-level `bleu` and `chrf`, or `rouge` (average F-measure of ROUGE-1, -2 and -L, with
    English stemming)."""

    def __post_init__(self):
        if not self.by:
            raise InputError("objective.scores.by: empty; expected bleu, chrf or rouge")

    @property
    def label(self) -> str:
        """Prefix of the metric names: `prefix` in lower case with underscores, such as "summarize_" if `prefix` is
        "summarize: ".
        """
        return re.sub(r"\W+", "_", self.prefix.lower() + " ").lstrip("_")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, without the prefix `label`."""
        return tuple(name for kind in self.by for name in (ROUGE if kind == "rouge" else (kind,)))


CUT = ("cut_inputs", "cut_references")
"""Names of two metrics: the number of scored documents whose input is too long for a batch row, and the number of
scored documents whose reference text is too long.
"""

Texts = tuple[tuple[str, str], ...]
"""Pairs of a generated text and its reference, in document order."""


def text_scores(
    outputs: Sequence[str], references: Sequence[str], by: Sequence[str] = ("bleu", "chrf")
) -> dict[str, float]:
    """Computes corpus-level scores of generated texts, each from 0 to 100. All are 0 if there are no texts.

    Args:
      outputs: generated texts.
      references: the reference of each generated text.
      by: metrics to compute: `bleu`, `chrf`, `rouge`.

    Returns:
      Scores, keyed by name: `bleu` and `chrf` of the whole corpus, and `rouge_1`, `rouge_2` and `rouge_l` averaged over
      the texts.
    """
    if not outputs:
        return dict.fromkeys((name for kind in by for name in (ROUGE if kind == "rouge" else (kind,))), 0.0)
    values = {}
    for kind in by:
        if kind == "rouge":
            found = [_rouge().score(*pair) for pair in zip(references, outputs, strict=True)]
            shares = {name: sum(one[theirs].fmeasure for one in found) for name, theirs in ROUGE.items()}
            values |= {name: 100 * share / len(found) for name, share in shares.items()}
        else:
            values[kind] = _corpus_metrics()[kind].corpus_score(list(outputs), [list(references)]).score
    return values


@dataclasses.dataclass(frozen=True)
class _FirstTexts:
    """Base class of metrics that score the first `count` held-out documents whose input begins with `scores.prefix`."""

    scores: Scores
    """Prefix of the inputs to score, and the metrics to compute."""
    count: int
    """Maximum number of documents to score, from the start of the data."""

    def check(self, task: Task) -> None:
        if not task.writes:
            raise InputError(
                f"objective.scored={self.count}: data.task={type(task).__name__} has no text to compare answers with; "
                "expected 0, or a task such as TextToText"
            )

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[int]:
        found: list[int] = []
        for index in range(len(documents)):
            if len(found) == self.count:
                break
            written = context.task.written(documents[index], context.tokenizer)
            if written is not None and written.inputs.startswith(self.scores.prefix):
                found.append(index)
        return found


@dataclasses.dataclass(frozen=True)
class TextScores(_FirstTexts, DocumentMetric[Texts]):
    """BLEU, chrF and ROUGE of the texts that a model generates for the first `count` held-out documents.

    The references are the original texts of the data source, neither tokenized nor truncated to the row length.
    """

    generate: Callable[[Context, Sequence[np.ndarray]], Sequence[str]]
    """Function that takes the context and one array of token ids per input, and returns one generated text per input.
    """

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.scores.label + name for name in self.scores.names)

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Texts:
        written = read_each(documents, lambda one: context.task.written(one, context.tokenizer), indices)
        outputs = self.generate(context, [one.tokens for one in written])
        return tuple(zip(outputs, (one.reference for one in written), strict=True))

    def merge(self, state: Texts, other: Texts) -> Texts:
        return state + other

    def compute(self, state: Texts) -> dict[str, float]:
        outputs, references = zip(*state, strict=True) if state else ((), ())
        values = text_scores(outputs, references, self.scores.by)
        return {self.scores.label + name: value for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class CutTexts(_FirstTexts, DocumentMetric[tuple[int, int]]):
    """Number of scored documents whose input is truncated to fit in a batch row, and number of scored documents whose
    reference text would be truncated.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.scores.label + name for name in CUT)

    def score(
        self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]
    ) -> tuple[int, int]:
        written = read_each(documents, lambda one: context.task.written(one, context.tokenizer), indices)
        return sum(one.cut_inputs for one in written), sum(one.cut_references for one in written)

    def merge(self, state: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        return state[0] + other[0], state[1] + other[1]

    def compute(self, state: tuple[int, int]) -> dict[str, float]:
        return dict(zip(self.names, map(float, state), strict=True))


# The libraries are imported only where scores are asked for.


@functools.cache
def _corpus_metrics():
    import sacrebleu

    # The outputs are not tokenized, however many of them end in a lone full stop.
    return {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF()}


@functools.cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE.values()), use_stemmer=True)
