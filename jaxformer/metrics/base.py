"""The contract of metrics: states of batches and of documents that merge exactly on any number of processes."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax

from jaxformer.metrics.means import Covariance, Mean

State = TypeVar("State")
Terms = Mapping[str, Any]
"""The values that an objective returns for a batch, by name: `Mean`s, and in evaluations the inputs of its metrics."""


class Metric(abc.ABC, Generic[State]):
    """One reported number, or several that are computed from one state.

    A state is created for every batch and merged with the states of earlier batches. All processes see the terms of
    the whole batch, so that all of them compute the same numbers. A metric is a frozen dataclass:

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
    """Whether the highest value is the best one, for `checkpoint.best`."""

    names: tuple[str, ...]
    """The names of the numbers that `compute` returns: a class variable, or a property."""

    @abc.abstractmethod
    def update(self, terms: Terms) -> State | None:
        """The state of one batch.

        Args:
          terms: the objective's terms of the batch, with NumPy arrays.

        Returns:
          The state; None where the terms lack what the metric needs, as those of a training step may.
        """

    def merge(self, state: State, other: State) -> State:
        """The state of two parts of the data, `state` of the earlier one; by default merges trees of means."""
        return jax.tree.map(lambda one, two: one.merged(two), state, other, is_leaf=is_mean)

    @abc.abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """The numbers by name, of the merged state of all the data."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The arguments of a metric of documents."""

    model: Any
    """The model."""
    params: Any
    """Its parameters, on devices of this process, whose mesh is the current one."""
    tokenizer: Any
    """The run's tokenizer; None where it reads no text."""
    task: Any
    """The task of the evaluation."""


class DocumentMetric(Metric[State]):
    """A metric of whole documents, such as scores of generated texts.

    Rows are parts of documents, so that means over rows do not give it. An evaluation divides the documents into groups
    of a fixed size, and its processes share the groups. Their states are merged in the order of the documents, so that
    the result does not depend on the number of processes.
    """

    def update(self, terms: Terms) -> State | None:
        return None

    def check(self, task: Any) -> None:
        """Raises InputError where the documents of a task lack what the metric compares."""

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """The indices of the documents to score, ascending; all by default."""
        return range(len(documents))

    @abc.abstractmethod
    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> State:
        """The state of some documents.

        Args:
          context: the model, which computes on the devices of this process.
          documents: all held-out documents.
          indices: which of them to score; none where there is no document.
        """


class MetricStates:
    """The states of several metrics, and what they compute."""

    def __init__(self, metrics: Iterable[Metric]):
        """Starts without data.

        Args:
          metrics: the metrics.

        Raises:
          ValueError: two metrics have the same name.
        """
        self.metrics = tuple(metrics)
        self._states: list[Any] = [None] * len(self.metrics)
        directions(self.metrics)

    def add(self, terms: Terms) -> None:
        """Adds the terms of a batch, with NumPy arrays."""
        for number, metric in enumerate(self.metrics):
            self._merge(number, metric.update(terms))

    def add_state(self, metric: Metric, state: Any) -> None:
        """Adds a state of one of the metrics."""
        self._merge(self.metrics.index(metric), state)

    def compute(self) -> dict[str, float]:
        """The numbers of all metrics that have a state, in the order of the metrics.

        Raises:
          ValueError: a metric computes other numbers than it has declared.
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
    """Whether the highest value is the best one, by the name of each number that the metrics declare.

    Raises:
      ValueError: two metrics have the same name.
    """
    found: dict[str, bool] = {}
    for metric in metrics:
        for name in metric.names:
            if name in found:
                raise ValueError(f"{metric}: another metric is called {name} too")
            found[name] = metric.higher_is_better
    return found


def is_mean(leaf: Any) -> bool:
    """Whether a node of a tree is a mean or a covariance; for `jax.tree.map(is_leaf=...)`."""
    return isinstance(leaf, Mean | Covariance)
