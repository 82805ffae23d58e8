"""Normalization layers (LayerNorm and RMSNorm), which normalize the last axis and compute in float32."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.parallel import metadata


class LayerNorm(nn.Module):
    """Layer normalization over the last axis (Ba et al. 2016).

    Computes `(x - mean) / sqrt(variance + epsilon) · scale + bias`.
    """

    epsilon: float = 1e-6
    """Number added to the variance for numerical stability."""
    bias: bool = True
    """Whether to add a learned bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = metadata.parameter(self, "scale", metadata.with_axes(nn.initializers.ones, "d"), (width,))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon) * scale
        if self.bias:
            y = y + metadata.parameter(self, "bias", metadata.with_axes(nn.initializers.zeros, "d"), (width,))
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalization `x / sqrt(mean(x²) + epsilon) · scale` over the last axis (Zhang & Sennrich 2019)."""

    epsilon: float = 1e-6
    """Number added to the mean square for numerical stability."""
    zero_centered: bool = False
    """Whether `x` is multiplied by 1 + `scale` instead of `scale`, as in Gemma. `scale` is then initialized to 0."""

    axis: ClassVar[str] = "d"
    """Letter that names the normalized axis in `sharding.AXES`, which determines how `scale` is sharded."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.zero_centered else nn.initializers.ones
        scale = metadata.parameter(self, "scale", metadata.with_axes(init, self.axis), (x.shape[-1],))
        if self.zero_centered:
            scale = 1 + scale
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon) * scale
        return y.astype(x.dtype)


class HeadRMSNorm(RMSNorm):
    """RMS normalization of queries and keys over the dimensions of a head (Dehghani et al. 2023, §2)."""

    axis: ClassVar[str] = "k"
    """Letter that names the normalized axis in `sharding.AXES`, which determines how `scale` is sharded."""
