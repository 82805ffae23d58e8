"""HiFi-GAN: a vocoder, which converts log-mel spectrograms to sounds (Kong et al. 2020)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType
from jaxformer.layers.time_convolution import TimeConvolution, TransposedConvolution
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.parallel import metadata

EDGE = 7
"""Kernel size of the first and the last convolution."""
LAST_SLOPE = 0.01
"""Slope of the leaky ReLU before the last convolution."""


@flax.struct.dataclass
class WaveformOutput(ModelOutput):
    """Output of a vocoder."""

    waveform: jax.Array | None = None
    """Samples from -1 to 1, float32 [batch, samples]."""

    exported: ClassVar[tuple[str, ...]] = ("waveform",)


class HifiGan(Model):
    """HiFi-GAN generator: transposed convolutions that increase the rate from frames to samples, each followed by
    residual blocks of convolutions with several kernel sizes, whose outputs are averaged (Kong et al. 2020, §2.2).

    The defaults are the sizes of SpeechT5's vocoder. There are no Transformer blocks.
    """

    is_vocoder: ClassVar[bool] = True

    mels: int = 80
    """Number of mel bands of a frame."""
    channels: int = 512
    """Number of channels before the first transposed convolution. Each of them halves the number."""
    strides: tuple[int, ...] = (4, 4, 4, 4)
    """Stride of each transposed convolution: number of output positions per input position."""
    kernels: tuple[int, ...] = (8, 8, 8, 8)
    """Kernel size of each transposed convolution."""
    block_kernels: tuple[int, ...] = (3, 7, 11)
    """Kernel size of each residual block after a transposed convolution."""
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations of the convolutions of each residual block."""
    slope: float = 0.1
    """Slope of the leaky ReLU for negative values."""
    normalize: bool = True
    """Whether to normalize spectrograms with a mean and a scale per mel band, which are loaded with the weights."""
    rate: int = 16_000
    """Sampling rate of the sounds, in samples per second."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    def __post_init__(self):
        super().__post_init__()
        for field in ("mels", "channels", "rate"):
            if getattr(self, field) < 1:
                raise InputError(f"model.{field}={getattr(self, field)}: expected at least 1")
        if len(self.kernels) != len(self.strides) or not self.strides:
            raise InputError(f"model.kernels={self.kernels}: expected one number per stride, {len(self.strides)}")
        if len(self.dilations) != len(self.block_kernels) or not self.dilations:
            raise InputError(
                f"model.dilations={self.dilations}: expected one entry per residual block, {len(self.block_kernels)}"
            )
        pairs = zip(self.kernels, self.strides, strict=True)
        if any(kernel < stride or (kernel - stride) % 2 for kernel, stride in pairs):
            raise InputError(f"model.kernels={self.kernels}: expected each stride, {self.strides}, plus an even number")
        if any(kernel % 2 == 0 for kernel in self.block_kernels):
            raise InputError(f"model.block_kernels={self.block_kernels}: expected odd numbers")
        if self.channels % 2 ** len(self.strides):
            raise InputError(f"model.channels={self.channels}: expected a multiple of {2 ** len(self.strides)}")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of each input argument to the specification of its array."""
        return {
            "log_mel": InputSpec("ban", "log-mel spectrograms, as computed by `LogMel`", "float32"),
            "lengths": InputSpec("b", "number of frames without padding", optional=True, exported=False),
        }

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the number of mel bands, keyed by the letter of its axis, `n`."""
        return {"n": self.mels}

    def stacks(self) -> dict[str, Transformer]:
        """Returns an empty dict: the model has no Transformer blocks."""
        return {}

    @property
    def hop(self) -> int:
        """Number of samples per frame."""
        return math.prod(self.strides)

    @property
    def compute_dtype(self) -> DType:
        """Data type that the model computes in."""
        return self.dtype

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the modules whose parameters a warm start takes from the pretrained model: none by name, because
        there are no heads.
        """
        return ()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of the convolutions in a forward pass.

        Args:
          sizes: number of rows `b` and of frames per row `a`.
        """
        length, width = float(sizes["a"]), self.channels
        flops = 2.0 * length * EDGE * self.mels * width
        for stride, kernel in zip(self.strides, self.kernels, strict=True):
            flops += 2.0 * length * kernel * width * (width // 2)
            length, width = length * stride, width // 2
            for taps, dilations in zip(self.block_kernels, self.dilations, strict=True):
                flops += len(dilations) * 4.0 * length * taps * width * width
        return sizes["b"] * (flops + 2.0 * length * EDGE * width)

    @nn.compact
    def __call__(self, log_mel: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> WaveformOutput:
        """Converts log-mel spectrograms to sounds.

        Args:
          log_mel: log-mel spectrograms, [batch, frames, mels].
          lengths: number of frames of each row without padding, integers [batch]. The samples of these frames do not
            depend on the padding, and those after them are not meaningful. If None, there is no padding.
          train: not used.
        """
        del train
        x = log_mel.astype(jnp.float32)
        for name, init in (("mean", nn.initializers.zeros), ("scale", nn.initializers.ones)):
            stored = self.param(name, metadata.with_axes(init, "n"), (self.mels,))
            if self.normalize:
                stored = jax.lax.stop_gradient(stored)
                x = x - stored if name == "mean" else x / stored
        mask = None if lengths is None else (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        x = TimeConvolution(self.channels, EDGE, dtype=self.dtype, name="first")(_masked(x, mask))
        width = self.channels
        for level, (stride, kernel) in enumerate(zip(self.strides, self.kernels, strict=True)):
            width //= 2
            x = _masked(nn.leaky_relu(x, self.slope), mask)
            x = TransposedConvolution(width, kernel, stride, self.dtype, name=f"up_{level}")(x)
            mask = None if mask is None else jnp.repeat(mask, stride, axis=1)
            blocks = [self._block(x, mask, level, number) for number in range(len(self.block_kernels))]
            x = sum(blocks) / len(blocks)
        x = TimeConvolution(1, EDGE, dtype=self.dtype, name="last")(_masked(nn.leaky_relu(x, LAST_SLOPE), mask))
        return WaveformOutput(waveform=jnp.tanh(x[..., 0].astype(jnp.float32)))

    def _block(self, x: jax.Array, mask: jax.Array | None, level: int, number: int) -> jax.Array:
        """Applies residual block `number` after transposed convolution `level` to x [batch, length, channels]."""
        taps, name = self.block_kernels[number], f"block_{level}_{number}"
        for index, dilation in enumerate(self.dilations[number]):
            y = _masked(nn.leaky_relu(x, self.slope), mask)
            y = TimeConvolution(x.shape[-1], taps, dilation, dtype=self.dtype, name=f"{name}_dilated_{index}")(y)
            y = _masked(nn.leaky_relu(y, self.slope), mask)
            y = TimeConvolution(x.shape[-1], taps, dtype=self.dtype, name=f"{name}_plain_{index}")(y)
            x = x + y
        return x


def _masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Sets padding to zeros, as convolutions see it after the end of a row."""
    return x if mask is None else jnp.where(mask, x, 0)
