"""Normalisation over the width, computed in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import sharding


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) · scale + bias` over the last axis (Ba et al. 2016)."""

    epsilon: float = 1e-6
    """Added to the variance."""
    bias: bool = True
    """Whether to add a bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = self.param("scale", sharding.with_axes(nn.initializers.ones, "d"), (width,))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon) * scale
        if self.bias:
            y = y + self.param("bias", sharding.with_axes(nn.initializers.zeros, "d"), (width,))
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + epsilon) · scale` over the last axis (Zhang & Sennrich 2019)."""

    epsilon: float = 1e-6
    """Added to the mean square."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", sharding.with_axes(nn.initializers.ones, "d"), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon) * scale
        return y.astype(x.dtype)
