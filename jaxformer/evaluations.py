"""Configs of evaluations on additional data sets, and of the metric that determines the best checkpoint of a run."""

import dataclasses
import math
from collections.abc import Mapping

from jaxformer import fields
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Source
from jaxformer.data.tasks.base import Task
from jaxformer.errors import FieldError, InputError

VALIDATION = "validation"
"""Name of the evaluation on `data.validation`."""
RESERVED = ("train", VALIDATION)
"""Names that are not allowed for named evaluations, because they have another meaning in `metrics.jsonl`."""


@dataclasses.dataclass(frozen=True)
class NamedEvaluation:
    """An evaluation on its own data, in addition to the one on `data.validation`."""

    name: str
    """Name of the evaluation. It is the value of `split` in `metrics.jsonl`, and the prefix of the evaluation's metrics
    in `checkpoint.best`.
    """
    source: Source
    """Source of the held-out documents."""
    task: Task | None = None
    """Task that makes model inputs from the documents. If None, the task of the training data (`data.task`) is used."""
    batches: int | None = None
    """Maximum number of batches to read. If None, all of the data is read."""

    def __post_init__(self):
        if not self.name.replace("-", "_").isidentifier() or self.name in RESERVED:
            others = " and ".join(RESERVED)
            problem = f"={self.name!r}: expected a word of letters, digits, - and _ other than {others}"
            raise FieldError("evaluations.name", problem)
        fields.at_least("evaluations.batches", self.batches, 1)

    def data(self, data: Data) -> Data:
        """Returns the data config of this evaluation: a copy of `data` whose validation source is `source`, and whose
        task is `task`. If `task` is None, the task of `data` is kept.
        """
        return dataclasses.replace(data, validation=self.source, task=self.task or data.task)


@dataclasses.dataclass(frozen=True)
class BestMetric:
    """Metric that determines which checkpoint is best."""

    evaluation: str
    """Name of the evaluation that computes the metric."""
    metric: str
    """Name of the metric in this evaluation, such as `loss`."""
    higher_is_better: bool
    """Whether a higher value of the metric is better."""

    @property
    def key(self) -> str:
        """Key of the metric in the dict that `flat_results` returns, such as `validation/loss`."""
        return result_key(self.evaluation, self.metric)

    def rank(self, results: Mapping[str, float]) -> float | None:
        """Returns the value of the metric in `results`, negated if a lower value is better, so that a better checkpoint
        has a higher number. Returns -inf if the value is NaN, and None if the evaluation has not run.
        """
        if self.key not in results:
            return None
        value = results[self.key]
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value


def result_key(evaluation: str, metric: str) -> str:
    """Returns the key of a metric in the dict that `flat_results` returns, such as `validation/loss`."""
    return f"{evaluation}/{metric}"


def flat_results(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Merges the metrics of all evaluations into one dict. `results` maps the name of each evaluation to a dict of its
    metrics. The new keys consist of both names, such as `validation/loss`.
    """
    return {result_key(name, metric): value for name, values in results.items() for metric, value in values.items()}


def find_best(name: str, evaluations: tuple[str, ...], declared: Mapping[str, bool]) -> BestMetric:
    """Finds the metric that the setting `checkpoint.best` names.

    Args:
      name: value of the setting: `METRIC` of the evaluation on `data.validation`, or `NAME/METRIC` of a named
        evaluation.
      evaluations: names of all evaluations.
      declared: metrics that every evaluation computes. Maps the name of each to whether a higher value is better.

    Raises:
      InputError: If there is no such evaluation or metric.
    """
    if name in declared and VALIDATION in evaluations:
        return BestMetric(VALIDATION, name, declared[name])
    evaluation, _, metric = name.partition("/")
    if evaluation in evaluations and metric in declared:
        return BestMetric(evaluation, metric, declared[metric])
    if name in declared or metric in declared:
        others = ", ".join(f"{other}/{metric or name}" for other in evaluations)
        raise InputError(f"checkpoint.best={name}: no such evaluation; expected {others}")
    raise InputError(f"checkpoint.best={name}: no such metric; expected one of {', '.join(sorted(declared))}")
