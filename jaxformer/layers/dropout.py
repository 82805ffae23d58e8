"""Dropout from few random bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> tuple[jax.Array, float]:
    """Draws the elements that stay, and returns the exact probability that one does.

    Eight random bits an element, four elements a generated word: generating is most of dropout's cost. The rate is
    rounded to 1/256 where that changes it by less than 2%, to 1/65,536 elsewhere.

    Returns:
      A boolean array of `shape`, and the keep probability that its rounding gives.
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
    """Zeroes elements with probability `rate` and scales the others (Srivastava et al. 2014); `x` without a key."""
    if key is None:
        return x
    keep, probability = keep_mask(key, rate, x.shape)
    return jnp.where(keep, x / probability, 0)


class Dropout(nn.Module):
    """`dropout` as a layer: it acts in training, with a key of the rng stream `dropout`."""

    rate: float
    """Probability of a zero, from 0 to below 1."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return dropout(x, self.rate, self.make_rng("dropout") if train and self.rate else None)
