"""Means that stay exact when batches are uneven, split or spread over devices."""

from collections.abc import Iterable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Mean:
    """A weighted mean, kept as its sum and its weight, so that merging two is adding them."""

    sum: jax.Array
    """Σ weight · value: a scalar, or an array of several means that share one weight."""
    weight: jax.Array
    """Σ weight, a scalar."""

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """The mean of `values` with `weights` of the same shape, in float32."""
        values, weights = values.astype(jnp.float32), weights.astype(jnp.float32)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    @property
    def value(self) -> jax.Array:
        """The mean; 0 where nothing was weighed."""
        return self.sum / (self.weight + (self.weight == 0))


def merge(parts: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means of all parts together, name by name, as NumPy float64; one transfer from the device for all."""
    merged: dict[str, Mean] = {}
    for part in jax.device_get(list(parts)):
        for name, mean in part.items():
            total = merged.get(name, Mean(0.0, 0.0))
            merged[name] = Mean(total.sum + np.asarray(mean.sum, np.float64), total.weight + float(mean.weight))
    return merged
