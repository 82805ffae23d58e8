"""Metrics that are means over the data, and functions of them."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxformer.metrics.base import Metric, Terms
from jaxformer.metrics.means import Covariance, Mean, with_auxiliary


@dataclasses.dataclass(frozen=True)
class Average(Metric[Mean]):
    """The mean of one of the objective's terms, under the term's name."""

    name: str
    """The term, and the metric."""
    higher_is_better: bool = False
    """Whether the highest value is the best one."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.name].double() if self.name in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: float(state.value)}


@dataclasses.dataclass(frozen=True)
class Loss(Metric[dict[str, Mean]]):
    """The loss: the weighted sum of the means of its terms."""

    weights: tuple[tuple[str, float], ...] = (("loss", 1.0),)
    """The terms and their weights."""

    names = ("loss",)

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Loss":
        """The loss with the weights that an objective has for its terms."""
        return cls(tuple(weights.items()))

    def update(self, terms: Terms) -> dict[str, Mean]:
        return {name: terms[name].double() for name in with_auxiliary(dict(self.weights), terms)}

    def compute(self, state: dict[str, Mean]) -> dict[str, float]:
        weights = with_auxiliary(dict(self.weights), state)
        return {"loss": sum(weight * float(state[name].value) for name, weight in weights.items())}


@dataclasses.dataclass(frozen=True)
class Perplexity(Metric[Mean]):
    """The exponential of a mean cross-entropy in nats."""

    name: str
    """The metric."""
    term: str
    """The term with the cross-entropy."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {self.name: math.exp(min(float(state.value), 700.0))}


@dataclasses.dataclass(frozen=True)
class BitsPerToken(Metric[Mean]):
    """A mean cross-entropy in bits."""

    term: str = "cross_entropy"
    """The term with the cross-entropy in nats."""

    names = ("bits_per_token",)

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        return {"bits_per_token": float(state.value) / math.log(2)}


@dataclasses.dataclass(frozen=True)
class LargestShare(Metric[Mean]):
    """The share of the most frequent class, from the term's counts of all classes: a baseline for an accuracy."""

    name: str
    """The metric."""
    term: str
    """The term whose sum has the counts, [classes]."""

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
    """Pearson's correlation of predictions and targets; 0 where one of them does not vary."""

    term: str = "covariance"
    """The term with their covariances."""

    names = ("pearson",)
    higher_is_better = True

    def update(self, terms: Terms) -> Covariance | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Covariance) -> dict[str, float]:
        return {"pearson": state.correlation}


def token_metrics() -> tuple[Metric, ...]:
    """The metrics of a model that predicts tokens; perplexity and bits are of the cross-entropy alone."""
    perplexity = Perplexity("perplexity", "cross_entropy")
    accuracy = Average("accuracy", higher_is_better=True)
    return Loss(), Average("cross_entropy"), perplexity, BitsPerToken(), accuracy
