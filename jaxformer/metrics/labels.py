"""Precision, recall and F1 per label, and the Matthews correlation coefficient. All are computed from counts that are
summed over the data.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.metrics.base import Metric, Terms
from jaxformer.metrics.means import Mean

COUNTS = "counts/"
"""Prefix of the keys under which an objective returns the counts of each label (see `label_counts`)."""


def label_counts(names: Sequence[str], targets: jax.Array, guesses: jax.Array, weights: jax.Array) -> dict[str, Mean]:
    """Counts the true positives, the predictions and the targets of each label.

    Args:
      names: names of the labels.
      targets: multi-hot targets, [..., labels].
      guesses: multi-hot predictions, [..., labels].
      weights: 1 for examples to count, 0 for padding, [...].

    Returns:
      Maps the name of each label, with the prefix `COUNTS`, to a `Mean` whose field `sum` contains the three counts.
    """
    targets, guesses, weights = targets.astype(jnp.float32), guesses.astype(jnp.float32), weights[..., None]
    counts = jnp.stack([targets * guesses, guesses, targets], -1) * weights[..., None]
    sums = counts.reshape(-1, len(names), 3).sum(0)
    return {f"{COUNTS}{name}": Mean(sums[number], weights.sum()) for number, name in enumerate(names)}


Counts = dict[str, Mean]
"""Maps each label to a `Mean`. Its field `sum` contains three counts: true positives, predictions and targets."""


def counts_in(names: Sequence[str], terms: Terms) -> Counts | None:
    """Extracts the counts of each label from `terms`, the dict that an objective returns for a batch.

    Returns None if `terms` does not contain them, which is the case in training steps.
    """
    if not all(COUNTS + name in terms for name in names):
        return None
    return {name: terms[COUNTS + name].double() for name in names}


@dataclasses.dataclass(frozen=True)
class LabelScores(Metric[Counts]):
    """Precision, recall and F1 of each label. A number is 0 if its denominator is 0.

    `macro_f1` is the mean F1 over the labels that occur among the targets or predictions.
    """

    labels: tuple[str, ...]
    """Names of the labels, in the order in which their scores are reported."""

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        of_labels = (f"{kind}/{name}" for name in self.labels for kind in ("f1", "precision", "recall"))
        return ("macro_f1", *of_labels)

    def update(self, terms: Terms) -> Counts | None:
        return counts_in(self.labels, terms)

    def compute(self, state: Counts) -> dict[str, float]:
        values = {"macro_f1": 0.0}
        for name, mean in state.items():
            right, guessed, there = mean.sum
            values[f"f1/{name}"] = _share(2 * right, guessed + there)
            values[f"precision/{name}"] = _share(right, guessed)
            values[f"recall/{name}"] = _share(right, there)
        seen = [values[f"f1/{name}"] for name, mean in state.items() if mean.sum[1] + mean.sum[2]]
        return values | {"macro_f1": sum(seen) / max(1, len(seen))}


@dataclasses.dataclass(frozen=True)
class Matthews(Metric[Counts]):
    """Matthews correlation between predicted and true classes. For more than two classes, the generalization of
    Gorodkin (2004). 0 if the predictions or the targets are all the same class.
    """

    labels: tuple[str, ...]
    """Names of the classes, as in the dict that the objective returns (after the prefix `COUNTS`)."""

    names = ("matthews",)
    higher_is_better = True

    def update(self, terms: Terms) -> Counts | None:
        return counts_in(self.labels, terms)

    def compute(self, state: Counts) -> dict[str, float]:
        right, guessed, there = np.transpose([mean.sum for mean in state.values()])
        total = there.sum()
        spread = math.sqrt(max(0.0, (total**2 - guessed @ guessed) * (total**2 - there @ there)))
        return {"matthews": float((right.sum() * total - guessed @ there) / spread) if spread else 0.0}


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
