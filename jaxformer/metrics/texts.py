"""BLEU, chrF and ROUGE of generated texts, by sacreBLEU and rouge-score.

Papineni et al. 2002, Popović 2015, Lin 2004. The texts themselves are the state: the scores of a corpus are computed
from all of them together, by the public functions of both libraries, whichever process generated them.
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
"""Our names of its kinds, and those of rouge-score."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """The generated texts that are scored, and their metrics."""

    prefix: str = ""
    """Prefix of the inputs that are scored, such as "summarize: ", and of the names of their metrics; "" means all
    inputs."""
    by: tuple[Literal["bleu", "chrf", "rouge"], ...] = ("bleu", "chrf")
    """BLEU and chrF of all texts together; ROUGE-1, -2 and -L, F-measures of stems of English words, on average."""

    def __post_init__(self):
        if not self.by:
            raise InputError("objective.scores.by: empty; expected bleu, chrf or rouge")

    @property
    def label(self) -> str:
        """The prefix of the names of its metrics, such as "summarize_"."""
        return re.sub(r"\W+", "_", self.prefix.lower() + " ").lstrip("_")

    @property
    def names(self) -> tuple[str, ...]:
        """Its metrics, without the label."""
        return tuple(name for kind in self.by for name in (ROUGE if kind == "rouge" else (kind,)))


CUT = ("cut_inputs", "cut_references")
"""How many of the scored documents have more tokens of inputs, and of a reference, than the task's rows."""

Texts = tuple[tuple[str, str], ...]
"""Generated texts and their references, in the order of the documents."""


def text_scores(
    outputs: Sequence[str], references: Sequence[str], by: Sequence[str] = ("bleu", "chrf")
) -> dict[str, float]:
    """Scores of a corpus, each from 0 to 100; 0 where there is no text.

    Args:
      outputs: the generated texts.
      references: as many texts that should have been generated.
      by: of bleu, chrf and rouge.

    Returns:
      `bleu` and `chrf` of all texts together, and `rouge_1`, `rouge_2` and `rouge_l`, means over the texts.
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
    """The first documents whose inputs have a prefix."""

    scores: Scores
    """The documents that are scored, and their metrics."""
    count: int
    """Documents to score, at most."""

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
    """BLEU, chrF and ROUGE of the texts that a model generates for the first held-out documents.

    References are the whole texts of the source itself, unaffected by the tokenizer and the length of rows.
    """

    generate: Callable[[Context, Sequence[np.ndarray]], Sequence[str]]
    """The generated texts for inputs as tokens."""

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
    """How many of the scored documents have more tokens than the task's rows: of inputs, and of the reference."""

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
