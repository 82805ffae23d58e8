"""Convolution, frozen batch norm and pooling over images."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxformer.layers.linear import DType, compute_dtype
from jaxformer.parallel import metadata


class Convolution(nn.Module):
    """Convolution of images: [batch, height, width, channels] → [batch, height / stride, width / stride, `self.width`].

    Each side of the image is padded with half of the kernel size in zeros, as usual in PyTorch.
    """

    width: int
    """Number of output channels."""
    size: int = 3
    """Height and width of the kernel."""
    stride: int = 1
    """Stride: distance between neighboring output positions, in pixels of the input."""
    bias: bool = False
    """Whether to add a bias."""
    dtype: DType = "auto"
    """Data type to compute in. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.width)
        init = nn.initializers.truncated_normal((2 / np.prod(shape[:3])) ** 0.5)
        kernel = self.param("kernel", metadata.with_axes(init, "yxnd", 3), shape)
        dtype, edge = compute_dtype(self.dtype), (self.size // 2, self.size // 2)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if self.size == 1:  # The gradients of a product need no transposed copies of its inputs.
            y = jax.lax.slice(x, (0,) * 4, x.shape, (1, self.stride, self.stride, 1)) @ kernel[0, 0]
        else:
            strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, strides, (edge, edge), dimension_numbers=layout)
        if self.bias:
            bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, "d"), (self.width,))
            y = y + bias.astype(dtype)
        return y


class FrozenBatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) with fixed statistics, as in DETR's backbone.

    Computes `(x - mean) / sqrt(variance + epsilon) · scale + bias` over the last axis. The mean and variance of each
    channel are parameters that come from pretrained weights and are not trained.
    """

    epsilon: float = 1e-5
    """Number added to the variance for numerical stability."""
    trained: bool = False
    """Whether the scale and the bias are trained."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = (x.shape[-1],)
        zeros, ones = (metadata.with_axes(init, "d") for init in (nn.initializers.zeros, nn.initializers.ones))
        scale, bias = self.param("scale", ones, width), self.param("bias", zeros, width)
        mean, variance = self.param("mean", zeros, width), self.param("variance", ones, width)
        if not self.trained:
            scale, bias = jax.lax.stop_gradient((scale, bias))
        scale = scale * jax.lax.rsqrt(jax.lax.stop_gradient(variance) + self.epsilon)
        bias = bias - jax.lax.stop_gradient(mean) * scale
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling with a window of 3 × 3 pixels and a stride of 2: [batch, height, width, channels] → [batch, height /
    2, width / 2, channels].
    """
    around: Any = ((1, 1), (1, 1))  # Flax types it as the name of a rule.
    return nn.max_pool(x, (3, 3), (2, 2), around)


def conv_flops(height: int, width: int, size: int, channels: int, outputs: int) -> float:
    """Returns the FLOPs of a convolution for one image.

    Args:
      height: height of the output.
      width: width of the output.
      size: height and width of the kernel.
      channels: number of input channels.
      outputs: number of output channels.
    """
    return 2.0 * height * width * size * size * channels * outputs


def strided(length: int, stride: int) -> int:
    """Returns the number of output positions of a convolution along an axis of `length` pixels: `length / stride`,
    rounded up.
    """
    return -(-length // stride)
