"""Layers of SegFormer's encoder: overlapping patches, attention with fewer keys and values, and an MLP that mixes
neighboring positions (Xie et al. 2021, §3.1).

Vectors [batch, positions, embed] represent a square feature map, whose positions are stored row by row.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.attention import Attention
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.linear import DType, Linear, compute_dtype
from jaxformer.layers.masks import Tokens
from jaxformer.layers.mlp import Mlp, activation
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import patchify
from jaxformer.layers.positions import Placement
from jaxformer.metrics.means import Mean
from jaxformer.parallel import metadata

EPSILON = 1e-5
"""Epsilon of the layer norms in SegFormer's encoder."""


def square(x: jax.Array) -> jax.Array:
    """Reshapes the vectors of a square feature map from [batch, positions, embed] to [batch, rows, columns, embed]."""
    side = math.isqrt(x.shape[1])
    return x.reshape(x.shape[0], side, side, x.shape[-1])


def window_shifts(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """Collects the pixels of all `size` × `size` windows of an image, as a convolution does. Returns one shifted copy
    of the image, [batch, height / stride, width / stride, channels], for each place in the window, row by row. The
    image is padded with zeros by half of the window size.

    Args:
      x: image, [batch, height, width, channels].
      size: height and width of the window.
      stride: distance between neighboring windows. It divides the height and the width.
    """
    batch, height, width, channels = x.shape
    edge = size // 2
    padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return [
        jax.lax.slice(
            padded, (0, row, column, 0), (batch, row + height, column + width, channels), (1, stride, stride, 1)
        )
        for row in range(size)
        for column in range(size)
    ]


class OverlappingPatches(nn.Module):
    """Embeds overlapping patches of an image: [batch, height, width, channels] → [batch, positions, embed]."""

    width: int
    """Size of the embeddings."""
    size: int
    """Height and width of a patch in pixels."""
    stride: int
    """Distance between neighboring patches in pixels. Patches overlap if it is smaller than `size`."""
    dtype: DType = "auto"
    """Data type to compute in. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.width)
        windows = jnp.stack(window_shifts(x, self.size, self.stride), axis=3)
        windows = windows.reshape(x.shape[0], -1, self.size, self.size, x.shape[-1])
        y = Linear("bpyxn,yxnd->bpd", shape, dtype=self.dtype, name="patch")(windows)
        return LayerNorm(EPSILON, name="norm")(y)


class ReducedAttention(Attention):
    """Attention in which each key and value summarizes `reduction` × `reduction` positions of a square feature map, to
    save computation. Each position still has its own query.
    """

    reduction: int = 1
    """Height and width, in positions, of the squares that a key and value summarize. 1 for ordinary attention."""

    def _keys(self, memory: jax.Array, placement: Placement, heads: int, dtype: DType) -> KeyValue:
        if self.reduction > 1:
            width, size = memory.shape[-1], self.reduction
            patches = patchify(square(memory), size)
            memory = Linear("bpyxn,yxnd->bpd", (size, size, width, width), dtype=dtype, name="reduction")(patches)
            memory = LayerNorm(EPSILON, name="reduction_norm")(memory)
        return super()._keys(memory, placement, heads, dtype)


class MixMlp(Mlp):
    """Feed-forward network with a 3 × 3 depthwise convolution between its linear layers:
    `down(activation(mix(up(x))))`. The zero padding of the convolution makes the output depend on the position, so no
    position embeddings are needed.
    """

    def flops(self, embed: int) -> float:
        return super().flops(embed) + 18.0 * self.inner(embed)

    @nn.compact
    def __call__(
        self, x: jax.Array, dtype: DType = "auto", train: bool = False, tokens: Tokens | None = None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Applies the network to the vectors of a square feature map, x [batch, positions, embed]. Returns the output
        of the same shape, and an empty dict of auxiliary losses. `train` and `tokens` are not used.
        """
        del train, tokens
        width, inner = x.shape[-1], self.inner(x.shape[-1])
        y = Linear("btd,df->btf", (width, inner), self.bias, dtype, name="up")(x)
        init = metadata.with_axes(nn.initializers.truncated_normal(1 / 3), "yxf", 2)
        kernel = self.param("mix_kernel", init, (3, 3, inner)).astype(compute_dtype(dtype))
        bias = self.param("mix_bias", metadata.with_axes(nn.initializers.zeros, "f"), (inner,))
        parts = zip(window_shifts(square(y), 3, 1), kernel.reshape(9, inner), strict=True)
        mixed = sum((part * row for part, row in parts), jnp.zeros((), y.dtype)).reshape(y.shape) + bias.astype(y.dtype)
        y = activation(self.activation)(mixed)
        return Linear("btf,fd->btd", (inner, width), self.bias, dtype, name="down")(y), {}
