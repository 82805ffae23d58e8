"""Weighted means and covariances that can be merged exactly across batches, micro-batches and devices, also if these
have unequal weights.
"""

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

_in_fixed_order = contextvars.ContextVar("_in_fixed_order", default=False)


@contextlib.contextmanager
def fixed_order() -> Iterator[None]:
    """Context manager in which sums do not depend on the mesh or the number of processes.

    The mesh determines the order in which devices add up the parts of a sum, and so the rounding in float32. In
    functions that are traced in this context, the values are gathered on every device before they are summed. This is
    too slow for training steps.
    """
    token = _in_fixed_order.set(True)
    try:
        yield
    finally:
        _in_fixed_order.reset(token)


def whole(array: jax.Array) -> jax.Array:
    """In a `fixed_order` context, replicates an array on all devices of the current mesh, so that each device sums it
    in the same order. Elsewhere, returns the array unchanged.
    """
    if not _in_fixed_order.get() or jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def total(values: jax.Array) -> jax.Array:
    """Returns the sum of all values. In a `fixed_order` context, the sum does not depend on the mesh."""
    return jnp.sum(whole(values))


@flax.struct.dataclass
class Mean:
    """Weighted mean, stored as a weighted sum and a total weight. Means of two parts of the data are merged by adding
    their sums and their weights.
    """

    sum: jax.Array | np.ndarray
    """Sum of weight · value: a scalar, or an array if several means with the same weights are stored together."""
    weight: jax.Array | np.ndarray | float
    """Sum of the weights, a scalar."""

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """Computes the mean of all `values` in float32. `weights` has the same shape as `values`."""
        values, weights = values.astype(jnp.float32), weights.astype(jnp.float32)
        return cls(total(values * weights), total(weights))

    @property
    def value(self) -> jax.Array | np.ndarray:
        """Value of the mean. 0 if the total weight is 0."""
        return self.sum / (self.weight + (self.weight == 0))

    def double(self) -> "Mean":
        """Converts the mean to NumPy float64."""
        return Mean(np.asarray(self.sum, np.float64), float(self.weight))

    def merged(self, other: "Mean") -> "Mean":
        """Returns the mean over the data of both means. Convert both with `double` first, so that they are added in
        float64.
        """
        return Mean(self.sum + other.sum, self.weight + other.weight)


AUXILIARY = "auxiliary/"
"""Prefix of the keys under which an objective returns the auxiliary losses of a model, such as the load-balancing loss
of expert layers. Each of them has weight 1 in the total loss.
"""


REPORTED = "reported/"
"""Prefix of the names of means that a model returns only for logging. They are not added to the loss."""


def auxiliary(output: Any) -> dict[str, Mean]:
    """Returns the auxiliary losses, and the means that are only logged, in the output of a model.

    An objective adds this dict to the losses that it returns; `auxiliary_name` gives the keys.
    """
    return {auxiliary_name(name): mean for name, mean in output.means.items()}


def auxiliary_name(name: str) -> str:
    """Returns the key under which an objective returns an auxiliary loss or a logged mean of the model.

    Adds the prefix `AUXILIARY`, unless `name` has the prefix `REPORTED`.
    """
    return name if name.startswith(REPORTED) else AUXILIARY + name


def with_auxiliary(weights: Mapping[str, float], terms: Iterable[str]) -> dict[str, float]:
    """Adds auxiliary losses to `weights`, a dict that maps loss names to their weights in the total loss.

    Each name in `terms` with the prefix `AUXILIARY` gets weight 1, unless it already has a weight.
    """
    return {**dict.fromkeys((name for name in terms if name.startswith(AUXILIARY)), 1.0), **weights}


def added(*parts: Mapping[str, Mean]) -> dict[str, Mean]:
    """Merges dicts of means, such as those of the encoder and the decoder of a model. Means with the same name are
    combined by adding their sums and their weights.
    """
    total: dict[str, Mean] = {}
    for means in parts:
        for name, mean in means.items():
            total[name] = jax.tree.map(jnp.add, total[name], mean) if name in total else mean
    return total


@flax.struct.dataclass
class Covariance:
    """Weighted covariances between several quantities, such as predictions and targets.

    The sums are stored relative to a point near the means, because sums of squares relative to 0 lose all precision if
    the values are large compared to their spread. Two covariances are merged as in Chan et al. (1983).
    """

    weight: jax.Array | np.ndarray
    """Sum of the weights, a scalar."""
    center: jax.Array | np.ndarray
    """Point near the means of the quantities, relative to which `sums` and `products` are stored, [quantities]."""
    sums: jax.Array | np.ndarray
    """Sum of weight · (value − center), [quantities]."""
    products: jax.Array | np.ndarray
    """Sum of weight · (value − center)(value − center)ᵀ, [quantities, quantities]."""

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Covariance":
        """Computes the weighted covariances of several quantities, in float32.

        Args:
          values: values of each quantity, [examples, quantities].
          weights: weight of each example, [examples].
        """
        values, weights = whole(values.astype(jnp.float32)), whole(weights.astype(jnp.float32))[:, None]
        weight, real = weights.sum(), weights > 0
        least = jnp.where(real, values, jnp.inf).min(0)
        most = jnp.where(real, values, -jnp.inf).max(0)
        # Sums of large values would be rounded, and the mean of equal values could differ from them.
        apart = jnp.where(real, values - least, 0.0)
        center = jnp.where(weight > 0, jnp.minimum(least + (apart * weights).sum(0) / weight, most), 0.0)
        apart = jnp.where(real, values - center, 0.0)
        return cls(
            weight, center, (apart * weights).sum(0), jnp.matmul((apart * weights).T, apart, precision="highest")
        )

    def double(self) -> "Covariance":
        """Converts the covariances to NumPy float64, and makes `center` equal to the means."""
        weight, center, sums, products = (
            np.asarray(part, np.float64) for part in (self.weight, self.center, self.sums, self.products)
        )
        if not weight:
            return Covariance(weight, np.zeros_like(center), np.zeros_like(sums), np.zeros_like(products))
        products = products - np.outer(sums, sums) / weight
        return Covariance(weight, center + sums / weight, np.zeros_like(sums), products)

    def merged(self, other: "Covariance") -> "Covariance":
        """Returns the covariances over the data of both. Convert both with `double` first: the formula requires that
        `center` is equal to the means.
        """
        weight = self.weight + other.weight
        share = other.weight / (weight + (weight == 0))
        apart = other.center - self.center
        products = self.products + other.products + np.outer(apart, apart) * self.weight * share
        return Covariance(weight, self.center + share * apart, self.sums, products)

    @property
    def correlation(self) -> float:
        """Pearson correlation of the first two quantities. 0 if either is constant."""
        (x, product), (_, y) = self.double().products[:2, :2]
        return float(np.clip(product / np.sqrt(x * y), -1, 1)) if min(x, y) > 0 else 0.0


def merge(parts: Iterable[Mapping[str, Mean | Covariance]]) -> dict[str, Mean | Covariance]:
    """Merges dicts of means and covariances, such as those of several batches. Entries with the same name are merged in
    NumPy float64.

    All arrays are transferred from the device at once.
    """
    merged: dict[str, Mean | Covariance] = {}
    for part in jax.device_get(list(parts)):
        for name, mean in part.items():
            mean = mean.double()
            merged[name] = merged[name].merged(mean) if name in merged else mean
    return merged
