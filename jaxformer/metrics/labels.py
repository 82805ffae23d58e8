"""Precision, recall and F1 of labels, and Matthews' correlation, from counts that merge by addition."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.metrics.means import Mean

COUNTS = "counts/"
"""What the names of the means with a label's counts begin with."""


def label_counts(names: Sequence[str], targets: jax.Array, guesses: jax.Array, weights: jax.Array) -> dict[str, Mean]:
    """How often each label was guessed rightly, was guessed, and was there: a mean with the three sums for each.

    Args:
      names: of the n labels.
      targets: [..., n], 1 where a label holds.
      guesses: [..., n], 1 where it is said to.
      weights: float32 [...].
    """
    targets, guesses, weights = targets.astype(jnp.float32), guesses.astype(jnp.float32), weights[..., None]
    counts = jnp.stack([targets * guesses, guesses, targets], -1) * weights[..., None]
    sums = counts.reshape(-1, len(names), 3).sum(0)
    return {f"{COUNTS}{name}": Mean(sums[number], weights.sum()) for number, name in enumerate(names)}


def label_scores(means: Mapping[str, Mean]) -> dict[str, float]:
    """What merged `label_counts` say; nothing where there are none.

    Returns:
      `macro_f1`, the mean of F1 over the labels that are there or were guessed; and `f1/NAME`, `precision/NAME`,
      `recall/NAME` of each label, 0 where they would be 0 / 0.
    """
    counts = {name.removeprefix(COUNTS): mean.sum for name, mean in means.items() if name.startswith(COUNTS)}
    if not counts:
        return {}
    found = {"macro_f1": 0.0}
    for name, (right, guessed, there) in counts.items():
        found[f"f1/{name}"] = _share(2 * right, guessed + there)
        found[f"precision/{name}"] = _share(right, guessed)
        found[f"recall/{name}"] = _share(right, there)
    seen = [found[f"f1/{name}"] for name, (_, guessed, there) in counts.items() if guessed + there]
    return found | {"macro_f1": sum(seen) / max(1, len(seen))}


def matthews(means: Mapping[str, Mean]) -> float:
    """Matthews' correlation of labels of which one holds (Gorodkin 2004 for more than two); 0 where all are alike."""
    right, guessed, there = np.transpose([mean.sum for name, mean in means.items() if name.startswith(COUNTS)])
    total = there.sum()
    spread = math.sqrt(max(0.0, (total**2 - guessed @ guessed) * (total**2 - there @ there)))
    return float((right.sum() * total - guessed @ there) / spread) if spread else 0.0


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
