"""Base classes of metrics, whose states merge exactly across batches, documents and processes."""

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
    """Base class of metrics: one reported number, or several numbers that are computed from one state.

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
    """Names of the numbers that `compute` returns. Subclasses define it as a class variable or a property."""

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
    """Model, parameters, tokenizer and task for computing a `DocumentMetric`."""

    model: Any
    """Model that is evaluated."""
    params: Any
    """Model parameters, stored on the devices of this process. These devices form the current mesh."""
    tokenizer: Any
    """Tokenizer of the run. None if the data does not contain text."""
    task: Any
    """Task of the evaluation."""


class DocumentMetric(Metric[State]):
    """Base class of metrics that are computed from whole documents, such as scores of generated texts.

    A batch row may contain only part of a document, so these metrics cannot be computed from batches. An evaluation
    divides the documents into groups of a fixed size and distributes the groups over the processes. The states of the
    groups are merged in document order, so that the result does not depend on the number of processes.
    """

    def update(self, terms: Terms) -> State | None:
        return None

    def check(self, task: Any) -> None:
        """Raises InputError if the documents of `task` lack data that the metric needs, such as reference texts."""

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Returns the indices of the documents to score, in ascending order. Defaults to all documents."""
        return range(len(documents))

    @abc.abstractmethod
    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> State:
        """Computes the state of some documents.

        Args:
          context: the model, its parameters and its tokenizer.
          documents: all held-out documents.
          indices: indices of the documents to score; may be empty.
        """


class MetricStates:
    """Accumulates the states of several metrics over batches and documents, and computes their numbers."""

    def __init__(self, metrics: Iterable[Metric]):
        """Creates states without data.

        Args:
          metrics: the metrics.

        Raises:
          ValueError: If two metrics have a name in common.
        """
        self.metrics = tuple(metrics)
        self._states: list[Any] = [None] * len(self.metrics)
        directions(self.metrics)

    def add(self, terms: Terms) -> None:
        """Adds a batch to the states of all metrics.

        `terms` is the dict that the objective returns for the batch. Its arrays are NumPy arrays.
        """
        for number, metric in enumerate(self.metrics):
            self._merge(number, metric.update(terms))

    def add_state(self, metric: Metric, state: Any) -> None:
        """Merges `state`, which `metric` computed from further data, into the accumulated state of this metric."""
        self._merge(self.metrics.index(metric), state)

    def compute(self) -> dict[str, float]:
        """Returns the numbers of all metrics that have a state, in the order of the metrics.

        Raises:
          ValueError: If a metric computes numbers with other names than those in its attribute `names`.
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
    """Maps the name of each number that the metrics report to whether a higher value is better.

    Raises:
      ValueError: If two metrics have a name in common.
    """
    found: dict[str, bool] = {}
    for metric in metrics:
        for name in metric.names:
            if name in found:
                raise ValueError(f"{metric}: another metric is called {name} too")
            found[name] = metric.higher_is_better
    return found


def is_mean(leaf: Any) -> bool:
    """Returns whether a tree node is a `Mean` or a `Covariance`, for `jax.tree.map(is_leaf=...)`."""
    return isinstance(leaf, Mean | Covariance)
