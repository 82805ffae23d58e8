"""Layers that depend on a condition, such as the time and the class of a diffusion model: adaptive layer normalization
and gates (adaLN-Zero, Peebles & Xie 2023, §3.2), and the embedding of times.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers.linear import Linear

TIME_FEATURES = 256
"""Number of sines and cosines from which a time is embedded."""


class AdaLayerNorm(nn.Module):
    """Layer normalization whose shift and scale are linear functions of the condition (adaLN).

    Computes `(x - mean) / sqrt(variance + epsilon) · (1 + scale(condition)) + shift(condition)`. Both functions are 0
    at the start of training.
    """

    epsilon: float = 1e-6
    """Number added to the variance for numerical stability."""
    mlp_epsilon: float | None = None
    """Value of `epsilon` in the norm before the MLP of a block. If None, it is the same. The DiT of diffusers uses 1e-5
    there.
    """

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Normalizes `x` [batch, length, embed], and scales and shifts it by functions of `condition` [batch, size]."""
        shift, scale = (_from_condition(name, condition, x.shape[-1]) for name in ("shift", "scale"))
        epsilon = self.epsilon if self.mlp_epsilon is None or self.name != "mlp_norm" else self.mlp_epsilon
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
        return (y * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


class AdaGate(nn.Module):
    """Residual branch that multiplies the output of a layer by a linear function of the condition.

    The function is 0 at the start of training, so that every block is the identity (adaLN-Zero).
    """

    @nn.compact
    def __call__(
        self, y: jax.Array, depth: jax.Array | float = 1.0, train: bool = False, condition: jax.Array | None = None
    ) -> jax.Array:
        """Returns the vectors to add to the residual stream, [batch, length, embed].

        Args:
          y: output of a layer, [batch, length, embed].
          depth: relative depth of the block. Not used.
          train: whether the model is being trained. Not used.
          condition: condition, [batch, size].
        """
        del depth, train
        if condition is None:
            raise ValueError("AdaGate: expected BlockInputs with a condition")
        return y * _from_condition("gate", condition, y.shape[-1])[:, None].astype(y.dtype)


class TimeEmbedding(nn.Module):
    """Embeds times: sines and cosines of several frequencies, followed by two linear layers. Maps [batch] to [batch,
    width].
    """

    width: int
    """Size of the embeddings."""

    @nn.compact
    def __call__(self, times: jax.Array) -> jax.Array:
        """Embeds `times`, float32 [batch], which usually range from 0 to 1000."""
        x = time_features(times, TIME_FEATURES)
        x = Linear("bi,id->bd", (TIME_FEATURES, self.width), dtype="float32", name="up")(x)
        return Linear("bi,id->bd", (self.width, self.width), dtype="float32", name="down")(jax.nn.silu(x))


def time_features(times: jax.Array, size: int, longest: float = 10_000.0) -> jax.Array:
    """Computes `size` / 2 cosines and as many sines of times (Ho et al. 2020), float32 [batch, size]. The angles per
    unit of time decrease geometrically from 1 to 1 / `longest`.
    """
    half = size // 2
    exponents = np.float32(-math.log(longest)) * np.arange(half, dtype=np.float32) / np.float32(half - 1)
    angles = times.astype(jnp.float32)[:, None] * np.exp(exponents)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _from_condition(name: str, condition: jax.Array, width: int) -> jax.Array:
    """Applies a linear layer called `name`, which is 0 at the start of training, to the condition [batch, size].
    Returns [batch, width].

    Each linear layer computes one vector per image, so float32 costs little.
    """
    shape = (condition.shape[-1], width)
    return Linear("bi,id->bd", shape, dtype="float32", init_scale=0.0, name=name)(condition)
