"""Layers that read waveforms: convolutions that turn samples into frames, and convolutional position embeddings
(Baevski et al. 2020).
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.data.transforms.framing import Framing
from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear, compute_dtype
from jaxformer.layers.mlp import Activation, activation
from jaxformer.layers.norms import LayerNorm
from jaxformer.parallel import metadata, sharding

EPSILON = 1e-5
"""Number added to the variance in the norms of convolutions."""
KAIMING = 6**0.5
"""Factor between the standard deviations of the initial kernels of He et al. (2015) and of `Linear`."""


class TimeNorm(nn.Module):
    """Normalizes each channel over time: group norm (Wu & He 2018) with one channel per group. [batch, length,
    channels] → the same shape.
    """

    @nn.compact
    def __call__(self, x: jax.Array, counted: jax.Array | None = None) -> jax.Array:
        """Normalizes x [batch, length, channels].

        Args:
          x: input vectors.
          counted: 1 for positions from which mean and variance are computed, 0 for others, [batch, length]. If None,
            they are computed from all positions.
        """
        width = (x.shape[-1],)
        scale = self.param("scale", metadata.with_axes(nn.initializers.ones, "d"), width)
        bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, "d"), width)
        wide = x.astype(jnp.float32)
        if counted is None:
            mean = wide.mean(1, keepdims=True)
            variance = jnp.square(wide - mean).mean(1, keepdims=True)
        else:
            shares = counted[..., None] / jnp.maximum(1, counted.sum(1))[:, None, None]
            mean = (wide * shares).sum(1, keepdims=True)
            variance = (jnp.square(wide - mean) * shares).sum(1, keepdims=True)
        return ((wide - mean) * jax.lax.rsqrt(variance + EPSILON) * scale + bias).astype(x.dtype)


class FrameEncoder(nn.Module):
    """Convolutions over time, which turn samples into frames: [batch, samples] → [batch, frames, channels]. Each is
    followed by a norm, if it has one, and an activation function.
    """

    widths: tuple[int, ...]
    """Number of output channels of each convolution."""
    framing: Framing
    """Kernel sizes and strides of the convolutions."""
    norm: Literal["group", "layer"] = "group"
    """Norms: of each channel over time, only after the first convolution (`group`); or of each frame over its channels,
    after all convolutions (`layer`).
    """
    bias: bool = False
    """Whether convolutions have biases."""
    activation: Activation = "gelu"
    """Activation function after each convolution."""
    masked_statistics: bool = False
    """Whether the norm over time leaves out padding."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, samples: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Computes the frames of waveforms.

        Args:
          samples: waveforms, [batch, samples].
          lengths: number of samples without padding, integers [batch]. Only used with `masked_statistics`.
        """
        x = samples[..., None].astype(compute_dtype(self.dtype))
        for number, (width, kernel, stride) in enumerate(
            zip(self.widths, self.framing.kernels, self.framing.strides, strict=True)
        ):
            shape = (kernel, x.shape[-1], width)
            layer = Linear("btwi,wid->btd", shape, self.bias, self.dtype, KAIMING, name=f"layer_{number}")
            x = layer(_windows(x, kernel, stride))
            if self.norm == "layer":
                x = LayerNorm(EPSILON, name=f"norm_{number}")(x)
            elif number == 0:
                counted = None
                if self.masked_statistics and lengths is not None:
                    real = self.framing.lengths(lengths)[0]
                    counted = (jnp.arange(x.shape[1]) < real[:, None]).astype(jnp.float32)
                x = TimeNorm(name="norm_0")(x, counted)
            x = activation(self.activation)(x)
        return x


def _windows(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Returns the windows of `size` successive positions that a convolution with this stride combines, [batch, windows,
    size, channels]. There is no padding.
    """
    windows = (x.shape[1] - size) // stride + 1
    if windows < 1:
        raise ValueError(f"waveforms are too short: {x.shape[1]} positions; a convolution combines {size}")
    span = (windows - 1) * stride + 1
    # Not an index, because exported programs have lengths that are not known when they are traced.
    parts = [jax.lax.slice_in_dim(x, tap, tap + span, stride, axis=1) for tap in range(size)]
    return jnp.stack(parts, axis=2)


class ConvolutionalPositions(nn.Module):
    """Relative position embeddings (Mohamed et al. 2019): a grouped convolution over time with weight norm (Salimans &
    Kingma 2016), followed by an activation function. [batch, length, embed] → the same shape.
    """

    taps: int
    """Kernel size, in frames."""
    groups: int
    """Number of groups of channels. Each output channel depends only on the input channels of its group."""
    activation: Activation = "gelu"
    """Activation function of the output."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, taps = x.shape[-1], self.taps
        if width % self.groups:
            raise InputError(f"model.position_groups={self.groups} does not divide the width {width}")
        inputs, deviation = width // self.groups, 2 * (taps * width) ** -0.5
        init = metadata.with_axes(nn.initializers.normal(deviation), "w_d", 2)
        kernel = self.param("kernel", init, (taps, inputs, width))
        size = nn.initializers.constant(deviation * (inputs * width) ** 0.5)
        scale = self.param("scale", metadata.with_axes(size, "w"), (taps,))
        bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, "d"), (width,))
        kernel = kernel * (scale * jax.lax.rsqrt(jnp.square(kernel).sum((1, 2))))[:, None, None]
        dtype = compute_dtype(self.dtype)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if sharding.platform() == "cpu":
            # XLA on CPU takes ten times as long for the gradient of a grouped convolution.
            pairs = zip(jnp.split(x, self.groups, -1), jnp.split(kernel, self.groups, -1), strict=True)
            y = jnp.concatenate([_convolved(*pair, 1) for pair in pairs], axis=-1)
        else:
            y = _convolved(x, kernel, self.groups)
        return activation(self.activation)(y + bias.astype(dtype))


def _convolved(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Convolves x [batch, length, channels] with a kernel [taps, channels / groups, outputs] over time. The output has
    the length of x.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(len(kernel) // 2, (len(kernel) - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def convolution_flops(samples: int, widths: tuple[int, ...], framing: Framing) -> float:
    """Returns the FLOPs of a `FrameEncoder` for one waveform of `samples` samples."""
    flops, channels = 0.0, 1
    for length, kernel, width in zip(framing.lengths(samples), framing.kernels, widths, strict=True):
        flops += 2.0 * length * kernel * channels * width
        channels = width
    return flops
