"""Base classes of metrics. A metric accumulates a state, and the states of batches, documents and processes can be
merged exactly.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax

from jaxformer.metrics.means import Covariance, Mean

State = TypeVar("State")
Terms = Mapping[str, Any]
"""Dict that an objective returns for a batch: maps names to weighted means (`Mean`) and, in evaluations, to other
values from which metrics are computed.
"""


class Metric(abc.ABC, Generic[State]):
    """Base class of metrics. A metric accumulates one state, and computes one or several numbers to report from it.

    `update` creates a state for every batch, `merge` combines it with the state of earlier batches, and `compute` turns
    the merged state into numbers. All processes get the values of the global batch and compute the same numbers. A
    metric is a frozen dataclass:

        @dataclasses.dataclass(frozen=True)
        class WorstError(Metric[float]):
            names = ("worst_error",)

            def update(self, terms):
                return float(terms["errors"].max()) if "errors" in terms else None

            def merge(self, state, other):
                return max(state, other)

            def compute(self, state):
                return {"worst_error": state}
    """

    higher_is_better: bool = False
    """Whether higher values are better. Determines which checkpoint is the best one for the setting `checkpoint.best`.
    """

    names: tuple[str, ...]
    """Names of the numbers that `compute` returns. A subclass defines it as a class variable or a property."""

    @abc.abstractmethod
    def update(self, terms: Terms) -> State | None:
        """Computes the state of one batch.

        Args:
          terms: dict that the objective returns for the batch. Its arrays are NumPy arrays.

        Returns:
          The state. None if `terms` lacks a value that the metric needs, which may be the case in training steps.
        """

    def merge(self, state: State, other: State) -> State:
        """Merges the states of two parts of the data; `state` belongs to the earlier part.

        The default implementation merges pytrees whose leaves are `Mean`s and `Covariance`s.
        """
        return jax.tree.map(lambda one, two: one.merged(two), state, other, is_leaf=is_mean)

    @abc.abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """Computes the numbers to report from the merged state of all data, and returns them keyed by name."""


@dataclasses.dataclass(frozen=True)
class Context:
    """Model, parameters, tokenizer and task that a `DocumentMetric` needs to score documents."""

    model: Any
    """Model to evaluate."""
    params: Any
    """Model parameters, stored on the devices of this process. During scoring, the current mesh consists of these
    devices.
    """
    tokenizer: Any
    """Tokenizer of the run. None if the data does not contain text."""
    task: Any
    """Task of the held-out data, which converts documents to model inputs and targets."""


class DocumentMetric(Metric[State]):
    """Base class of metrics that are computed from whole documents, such as scores of generated texts.

    A batch row may contain only part of a document, so these metrics cannot be computed from batches. An evaluation
    divides the documents into groups of a fixed size and distributes the groups over the processes. The states of the
    groups are merged in document order, so that the result does not depend on the number of processes.
    """

    def update(self, terms: Terms) -> State | None:
        return None

    def check(self, task: Any) -> None:
        """Raises InputError if the documents of `task` lack data that the metric needs, such as reference texts. By
        default, accepts all tasks.
        """

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Returns the indices of the documents to score, in ascending order. Defaults to all documents."""
        return range(len(documents))

    @abc.abstractmethod
    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> State:
        """Computes the state of the metric over some of the documents.

        Args:
          context: model, parameters, tokenizer and task.
          documents: all held-out documents, each a dict of values.
          indices: indices of the documents to score; may be empty.
        """


class MetricStates:
    """Accumulates the states of several metrics over batches and documents, and computes the numbers to report."""

    def __init__(self, metrics: Iterable[Metric]):
        """Creates an accumulator that contains no data yet.

        Args:
          metrics: metrics to compute.

        Raises:
          ValueError: If two metrics report a number under the same name.
        """
        self.metrics = tuple(metrics)
        self._states: list[Any] = [None] * len(self.metrics)
        directions(self.metrics)

    def add(self, terms: Terms) -> None:
        """Updates the states of all metrics with one batch.

        `terms` is the dict that the objective returns for the batch. Its arrays are NumPy arrays.
        """
        for number, metric in enumerate(self.metrics):
            self._merge(number, metric.update(terms))

    def add_state(self, metric: Metric, state: Any) -> None:
        """Merges `state`, which `metric` computed from other data such as documents, into the accumulated state of
        `metric`.
        """
        self._merge(self.metrics.index(metric), state)

    def compute(self) -> dict[str, float]:
        """Returns the numbers of all metrics, keyed by name, in the order of the metrics. Metrics without data are left
        out.

        Raises:
          ValueError: If the names of the numbers that a metric computes differ from its attribute `names`.
        """
        values: dict[str, float] = {}
        for metric, state in zip(self.metrics, self._states, strict=True):
            if state is None:
                continue
            computed = metric.compute(state)
            if set(computed) != set(metric.names):
                raise ValueError(f"{metric}: computed {sorted(computed)}; it declares {sorted(metric.names)}")
            values |= computed
        return values

    def _merge(self, number: int, state: Any) -> None:
        if state is None:
            return
        before = self._states[number]
        self._states[number] = state if before is None else self.metrics[number].merge(before, state)


def directions(metrics: Iterable[Metric]) -> dict[str, bool]:
    """Returns a dict that maps the name of each number that the metrics report to whether a higher value is better.

    Raises:
      ValueError: If two metrics report a number under the same name.
    """
    found: dict[str, bool] = {}
    for metric in metrics:
        for name in metric.names:
            if name in found:
                raise ValueError(f"{metric}: another metric is called {name} too")
            found[name] = metric.higher_is_better
    return found


def is_mean(leaf: Any) -> bool:
    """Returns whether a node of a tree is a `Mean` or a `Covariance`. For the argument `is_leaf` of `jax.tree.map`."""
    return isinstance(leaf, Mean | Covariance)
