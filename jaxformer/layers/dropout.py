"""Dropout that uses only 8 or 16 random bits per element."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> tuple[jax.Array, float]:
    """Draws at random which elements dropout keeps.

    Random bits are the main cost of dropout, so each element uses only 8 of them, and the rate is rounded to a multiple
    of 1/256. If that would change the rate by 2% or more, each element uses 16 bits, and the rate is rounded to a
    multiple of 1/65,536.

    Returns:
      A boolean array of `shape`, True for kept elements, and the exact probability of keeping an element after
      rounding.
    """
    bits = 8 if abs(round(rate * 256) / 256 - rate) < 0.02 * rate else 16
    levels, lanes = 1 << bits, 32 // bits
    threshold = min(round(rate * levels), levels - 1)
    *leading, last = shape
    words = jax.random.bits(key, (*leading, -(-last // lanes)), jnp.uint32)
    parts = jax.lax.bitcast_convert_type(words, jnp.dtype(f"uint{bits}"))
    parts = parts.reshape(*leading, -1)[..., :last]
    return parts >= threshold, 1.0 - threshold / levels


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets each element to zero with probability `rate`, and divides the others by 1 - `rate` (Srivastava et al. 2014).

    Returns `x` unchanged if `key` is None.
    """
    if key is None:
        return x
    keep, probability = keep_mask(key, rate, x.shape)
    return jnp.where(keep, x / probability, 0)


class Dropout(nn.Module):
    """Dropout layer. It is active during training and uses the rng stream `dropout`."""

    rate: float
    """Probability of setting an element to zero, at least 0 and below 1."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return dropout(x, self.rate, self.make_rng("dropout") if train and self.rate else None)
