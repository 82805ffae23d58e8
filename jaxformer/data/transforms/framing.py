"""Geometry of the convolutions that turn a waveform into frames, as in wav2vec 2.0 (Baevski et al. 2020, §4.2)."""

import dataclasses
import math
from typing import Any

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Framing:
    """Kernel sizes and strides of convolutions over time without padding. The model has the convolutions; tasks compute
    from their sizes how many frames a sound has.

    The defaults are those of wav2vec 2.0 and HuBERT: a frame every 320 samples (20 ms), each computed from 400 samples.
    """

    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel size of each convolution, in samples of its input."""
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution, in samples of its input."""

    def __post_init__(self):
        fields.check(self)
        if not self.kernels or len(self.kernels) != len(self.strides):
            raise InputError(
                f"framing.strides={self.strides}: expected one number per convolution, as many as "
                f"framing.kernels={self.kernels}"
            )
        if min(*self.kernels, *self.strides) < 1:
            raise InputError(f"framing.kernels={self.kernels}, strides={self.strides}: expected at least 1")

    @property
    def hop(self) -> int:
        """Number of samples between the starts of consecutive frames."""
        return math.prod(self.strides)

    @property
    def window(self) -> int:
        """Number of samples from which a frame is computed."""
        size = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            size = (size - 1) * stride + kernel
        return size

    def lengths(self, samples: Any) -> list[Any]:
        """Returns the length of the output of each convolution for waveforms of `samples` samples: an integer, or an
        integer array. Lengths below 0 mean that a waveform is too short.
        """
        found = []
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
            found.append(samples)
        return found

    def frames(self, samples: Any) -> Any:
        """Returns the number of frames of a waveform with `samples` samples, an integer or an integer array. It is 0 or
        less if the waveform is shorter than one frame.
        """
        return self.lengths(samples)[-1]

    def samples(self, frames: int) -> int:
        """Returns the smallest number of samples that give `frames` frames."""
        return (frames - 1) * self.hop + self.window
