"""Convolutions over time, with any dilation, and transposed convolutions, which make sequences longer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.linear import DType, compute_dtype, truncated_normal
from jaxformer.parallel import metadata

AXES = ("NWC", "WIO", "NWC")


class TimeConvolution(nn.Module):
    """Convolution over time: [batch, length, channels] → [batch, length, `width`]. Positions outside of the input are
    zeros.
    """

    width: int
    """Number of output channels."""
    taps: int
    """Kernel size, an odd number of positions."""
    dilation: int = 1
    """Distance between the positions that the kernel combines."""
    bias: bool = True
    """Whether to add a bias."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, dtype = _kernel(self, x, self.taps, self.width), compute_dtype(self.dtype)
        edge = self.dilation * (self.taps // 2)
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (1,),
            [(edge, edge)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=AXES,
        )
        return y + _bias(self, self.width).astype(dtype) if self.bias else y


class TransposedConvolution(nn.Module):
    """Transposed convolution over time, which computes `stride` positions for each input position: [batch, length,
    channels] → [batch, length · `stride`, `width`].
    """

    width: int
    """Number of output channels."""
    taps: int
    """Kernel size in positions of the output: `stride` plus an even number."""
    stride: int
    """Number of output positions per input position."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, dtype = _kernel(self, x, self.taps, self.width), compute_dtype(self.dtype)
        edge = self.taps - 1 - (self.taps - self.stride) // 2
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            jnp.flip(kernel, 0).astype(dtype),
            (1,),
            [(edge, edge)],
            lhs_dilation=(self.stride,),
            dimension_numbers=AXES,
        )
        return y + _bias(self, self.width).astype(dtype)


def _kernel(module: nn.Module, x: jax.Array, taps: int, width: int) -> jax.Array:
    """Returns the kernel of a convolution of `x`, [taps, channels, width]."""
    shape = (taps, x.shape[-1], width)
    # The standard deviation keeps the size of values if half of them are set to 0 by an activation function.
    init = truncated_normal((2 / (taps * x.shape[-1])) ** 0.5)
    return module.param("kernel", metadata.with_axes(init, "wid", 2), shape)


def _bias(module: nn.Module, width: int) -> jax.Array:
    return module.param("bias", metadata.with_axes(nn.initializers.zeros, "d"), (width,))
