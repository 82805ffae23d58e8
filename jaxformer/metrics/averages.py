"""Metrics that are means over the data, or functions of such means."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxformer.metrics.base import Metric, Terms
from jaxformer.metrics.means import Covariance, Mean, with_auxiliary


@dataclasses.dataclass(frozen=True)
class Average(Metric[Mean]):
    """Metric that is the mean of one of the objective's values, such as its accuracy, and has the same name."""

    name: str
    """Name of the objective's value and of the metric."""
    higher_is_better: bool = False
    """Whether a higher value is better."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.name].double() if self.name in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: float(state.value)}


@dataclasses.dataclass(frozen=True)
class Loss(Metric[dict[str, Mean]]):
    """Total loss: the weighted sum of the means of an objective's losses."""

    weights: tuple[tuple[str, float], ...] = (("loss", 1.0),)
    """Pairs of a loss's name and its weight in the total loss."""

    names = ("loss",)

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Loss":
        """Creates the metric from an objective's `loss_weights`."""
        return cls(tuple(weights.items()))

    def update(self, terms: Terms) -> dict[str, Mean]:
        return {name: terms[name].double() for name in with_auxiliary(dict(self.weights), terms)}

    def compute(self, state: dict[str, Mean]) -> dict[str, float]:
        weights = with_auxiliary(dict(self.weights), state)
        return {"loss": sum(weight * float(state[name].value) for name, weight in weights.items())}


@dataclasses.dataclass(frozen=True)
class Perplexity(Metric[Mean]):
    """Perplexity: the exponential of the mean cross-entropy in nats."""

    name: str
    """Name of the metric, under which it is reported."""
    term: str
    """Name of the objective's value that is the cross-entropy in nats."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: math.exp(min(float(state.value), 700.0))}


@dataclasses.dataclass(frozen=True)
class BitsPerToken(Metric[Mean]):
    """Mean cross-entropy in bits per token."""

    term: str = "cross_entropy"
    """Name of the objective's value that is the cross-entropy in nats."""

    names = ("bits_per_token",)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {"bits_per_token": float(state.value) / math.log(2)}


@dataclasses.dataclass(frozen=True)
class LargestShare(Metric[Mean]):
    """Share of the most frequent class. It is the accuracy of always predicting this class, for comparison."""

    name: str
    """Name of the metric, under which it is reported."""
    term: str
    """Name of the objective's value that has the number of examples per class, [classes]."""

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: float(np.max(state.sum) / max(np.sum(state.sum), 1.0))}


@dataclasses.dataclass(frozen=True)
class Pearson(Metric[Covariance]):
    """Pearson correlation of predictions and targets; 0 if either of them is constant."""

    term: str = "covariance"
    """Name of the objective's value that has the covariances of predictions and targets."""

    names = ("pearson",)
    higher_is_better = True

    def update(self, terms: Terms) -> Covariance | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Covariance) -> dict[str, float]:
        return {"pearson": state.correlation}


def token_metrics() -> tuple[Metric, ...]:
    """Returns the metrics of a model that predicts tokens.

    Perplexity and bits per token are computed from the cross-entropy, without label smoothing and z-loss."""
    perplexity = Perplexity("perplexity", "cross_entropy")
    accuracy = Average("accuracy", higher_is_better=True)
    return Loss(), Average("cross_entropy"), perplexity, BitsPerToken(), accuracy
