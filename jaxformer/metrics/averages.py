"""Metrics that are computed from means and covariances over the data, such as the loss, the perplexity and the Pearson
correlation.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxformer.metrics.base import Metric, Terms
from jaxformer.metrics.means import Covariance, Mean, with_auxiliary


@dataclasses.dataclass(frozen=True)
class Average(Metric[Mean]):
    """Metric that averages one of the values that the training objective returns, such as `accuracy`, over the data."""

    name: str
    """Key of the value in the dict that the objective returns. The metric is reported under the same name."""
    higher_is_better: bool = False
    """Whether a higher value is better, for choosing the best checkpoint."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.name].double() if self.name in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: float(state.value)}


@dataclasses.dataclass(frozen=True)
class Loss(Metric[dict[str, Mean]]):
    """Total loss: the weighted sum of an objective's losses, each averaged over the data."""

    weights: tuple[tuple[str, float], ...] = (("loss", 1.0),)
    """Pairs of the key of a loss in the dict that the objective returns, and its weight in the total loss."""

    names = ("loss",)

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Loss":
        """Creates the metric from a dict that maps loss names to weights, such as `loss_weights` of an objective."""
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
    """Key of the cross-entropy (in nats) in the dict that the objective returns."""

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
    """Key of the cross-entropy (in nats) in the dict that the objective returns."""

    names = ("bits_per_token",)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {"bits_per_token": float(state.value) / math.log(2)}


@dataclasses.dataclass(frozen=True)
class LargestShare(Metric[Mean]):
    """Share of examples that belong to the most frequent class. This is the accuracy of a baseline that always predicts
    this class.
    """

    name: str
    """Name of the metric, under which it is reported."""
    term: str
    """Key of an array with the number of examples per class, [classes], in the dict that the objective returns."""

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
    """Key of the `Covariance` between predictions and targets in the dict that the objective returns."""

    names = ("pearson",)
    higher_is_better = True

    def update(self, terms: Terms) -> Covariance | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Covariance) -> dict[str, float]:
        return {"pearson": state.correlation}


def token_metrics() -> tuple[Metric, ...]:
    """Returns the metrics of a model that predicts tokens: loss, cross-entropy, perplexity, bits per token and
    accuracy.

    Perplexity and bits per token are computed from the cross-entropy without label smoothing and z-loss.
    """
    perplexity = Perplexity("perplexity", "cross_entropy")
    accuracy = Average("accuracy", higher_is_better=True)
    return Loss(), Average("cross_entropy"), perplexity, BitsPerToken(), accuracy
