"""Means that stay exact when batches are uneven, split or spread over devices."""

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
    """While a function is traced in this context, its means are sums in an order that no mesh and no process changes.

    Devices add up their parts of a sum in an order that depends on how they are connected, and float32 rounds
    differently in each. In this context the values are gathered first, which costs a step of training too much.
    """
    token = _in_fixed_order.set(True)
    try:
        yield
    finally:
        _in_fixed_order.reset(token)


def whole(array: jax.Array) -> jax.Array:
    """The array, in `fixed_order` whole on every device of the current mesh."""
    if not _in_fixed_order.get() or jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def total(values: jax.Array) -> jax.Array:
    """The sum of all values; see `fixed_order`."""
    return jnp.sum(whole(values))


@flax.struct.dataclass
class Mean:
    """A weighted mean, kept as its sum and its weight, so that merging two is adding them."""

    sum: jax.Array | np.ndarray
    """Σ weight · value: a scalar, or an array of several means that share one weight."""
    weight: jax.Array | np.ndarray | float
    """Σ weight, a scalar."""

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """The mean of `values` with `weights` of the same shape, in float32."""
        values, weights = values.astype(jnp.float32), weights.astype(jnp.float32)
        return cls(total(values * weights), total(weights))

    @property
    def value(self) -> jax.Array | np.ndarray:
        """The mean; 0 where nothing was weighed."""
        return self.sum / (self.weight + (self.weight == 0))

    def double(self) -> "Mean":
        """The same as NumPy float64."""
        return Mean(np.asarray(self.sum, np.float64), float(self.weight))

    def merged(self, other: "Mean") -> "Mean":
        """The mean of both together; both in `double`."""
        return Mean(self.sum + other.sum, self.weight + other.weight)


AUXILIARY = "auxiliary/"
"""How the names of a model's auxiliary means begin among the terms of a loss, in which each has the weight 1."""


REPORTED = "reported/"
"""Prefix of the names of means that are logged and not added to the loss."""


def auxiliary(output: Any) -> dict[str, Mean]:
    """Returns auxiliary losses of a model's output as terms of a loss, and its reported means by their own names."""
    return {auxiliary_name(name): mean for name, mean in output.means.items()}


def auxiliary_name(name: str) -> str:
    """Returns the name that a mean of a block has among the terms of a loss."""
    return name if name.startswith(REPORTED) else AUXILIARY + name


def with_auxiliary(weights: Mapping[str, float], terms: Iterable[str]) -> dict[str, float]:
    """Adds the auxiliary terms, each with weight 1, to the weights of the terms of a loss."""
    return {**dict.fromkeys((name for name in terms if name.startswith(AUXILIARY)), 1.0), **weights}


def added(*parts: Mapping[str, Mean]) -> dict[str, Mean]:
    """Means of several parts of a model by name, those of one name added up."""
    total: dict[str, Mean] = {}
    for means in parts:
        for name, mean in means.items():
            total[name] = jax.tree.map(jnp.add, total[name], mean) if name in total else mean
    return total


@flax.struct.dataclass
class Covariance:
    """Weighted covariances of k values, kept about a point near their means.

    Sums of plain squares lose all digits where values are large beside their spread. Two of these merge as Chan et al.
    (1983) merge variances.
    """

    weight: jax.Array | np.ndarray
    """Σ weight, a scalar."""
    center: jax.Array | np.ndarray
    """[k]: a point among the values, near their means."""
    sums: jax.Array | np.ndarray
    """[k]: Σ weight · (value − center)."""
    products: jax.Array | np.ndarray
    """[k, k]: Σ weight · (value − center)(value − center)ᵀ."""

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Covariance":
        """The covariances of `values` [n, k] with `weights` [n], in float32."""
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
        """The same as NumPy float64, about the means."""
        weight, center, sums, products = (
            np.asarray(part, np.float64) for part in (self.weight, self.center, self.sums, self.products)
        )
        if not weight:
            return Covariance(weight, np.zeros_like(center), np.zeros_like(sums), np.zeros_like(products))
        products = products - np.outer(sums, sums) / weight
        return Covariance(weight, center + sums / weight, np.zeros_like(sums), products)

    def merged(self, other: "Covariance") -> "Covariance":
        """The covariances of both together; both in `double`."""
        weight = self.weight + other.weight
        share = other.weight / (weight + (weight == 0))
        apart = other.center - self.center
        products = self.products + other.products + np.outer(apart, apart) * self.weight * share
        return Covariance(weight, self.center + share * apart, self.sums, products)

    @property
    def correlation(self) -> float:
        """Pearson's correlation of the first two values; 0 where one of them does not vary."""
        (x, product), (_, y) = self.double().products[:2, :2]
        return float(np.clip(product / np.sqrt(x * y), -1, 1)) if min(x, y) > 0 else 0.0


def merge(parts: Iterable[Mapping[str, Mean | Covariance]]) -> dict[str, Mean | Covariance]:
    """The means of all parts together, name by name, as NumPy float64; one transfer from the device for all."""
    merged: dict[str, Mean | Covariance] = {}
    for part in jax.device_get(list(parts)):
        for name, mean in part.items():
            mean = mean.double()
            merged[name] = merged[name].merged(mean) if name in merged else mean
    return merged
