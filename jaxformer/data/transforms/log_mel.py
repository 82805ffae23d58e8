"""Log-mel spectrograms, the input of speech recognizers (Radford et al. 2022, §2.2)."""

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.fft

from jaxformer import fields

FLOOR = 1e-10
"""Minimum energy of a mel band. Lower values are raised to it before the logarithm."""
PART = 4096
"""Number of frames for which spectra are computed at once, which limits memory use."""
RANGE = 8.0
"""Maximum difference between the largest and the smallest log10 energy of a sound. Smaller energies are raised to this
limit.
"""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Computes log-mel spectrograms: log10 of the energy of each mel band in each frame, scaled to about -1 to 1.

    Results equal those of `WhisperFeatureExtractor` in the transformers library.
    """

    mels: int = 80
    """Number of mel bands. Whisper large-v3 has 128."""
    rate: int = 16_000
    """Sampling rate in samples per second."""
    window: int = 400
    """Number of samples per frame. They are multiplied by a Hann window."""
    hop: int = 160
    """Number of samples between the starts of consecutive frames."""

    def __post_init__(self):
        for field in ("mels", "rate", "window", "hop"):
            fields.at_least(f"data.task.audio.log_mel.{field}", getattr(self, field), 1)

    @property
    def frames_per_second(self) -> float:
        """Number of spectrogram frames per second of sound."""
        return self.rate / self.hop

    def frames(self, seconds: float) -> int:
        """Returns the number of spectrogram frames of a sound that lasts `seconds` seconds."""
        return round(seconds * self.rate) // self.hop

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Computes the log-mel spectrogram of a sound.

        Frame i is centered on sample i · hop. The sound is mirrored at both ends. If it has at most half as many
        samples as a frame, zeros are appended first.

        Args:
          samples: samples of the sound at `rate`, [samples].

        Returns:
          Spectrogram, float32 [frames, mels].
        """
        half = self.window // 2
        samples = np.asarray(samples, np.float32)
        if len(samples) <= half:
            samples = np.pad(samples, (0, half + 1 - len(samples)))
        padded = np.pad(samples, half, mode="reflect")
        count = len(samples) // self.hop
        if not count:
            return np.zeros((0, self.mels), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][:count]
        # In parts, because the frames of a long sound would take much memory.
        parts = [self._energies(frames[start : start + PART]) for start in range(0, count, PART)]
        logs = np.log10(np.maximum(np.concatenate(parts), FLOOR))
        return ((np.maximum(logs, logs.max() - RANGE) + 4) / 4).astype(np.float32)

    def _energies(self, frames: np.ndarray) -> np.ndarray:
        """Computes the mel-band energies of frames. `frames` is [frames, window], and the result is float64 [frames,
        mels].
        """
        spectrum: Any = scipy.fft.rfft(frames * _hann(self.window), axis=-1)
        return (spectrum.real**2 + spectrum.imag**2) @ mel_filters(self.mels, self.rate, self.window)


@functools.cache
def _hann(size: int) -> np.ndarray:
    """Computes a periodic Hann window, float64 [size]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@functools.cache
def mel_filters(mels: int, rate: int, window: int, highest: float = 8000.0) -> np.ndarray:
    """Returns the weights of triangular filters on Slaney's mel scale, float64 [1 + window // 2, mels]. Each filter has
    an area of 1.

    Args:
      mels: number of filters.
      rate: sampling rate in samples per second.
      window: number of samples of a Fourier transform.
      highest: upper end of the last filter in Hz.
    """
    frequencies = np.arange(1 + window // 2) * rate / window
    edges = _hertz(np.linspace(0, _mel(highest), mels + 2))
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


# Slaney's scale is linear up to 1,000 Hz, with 15 mels there, and logarithmic above.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _mel(hertz: float) -> float:
    """Converts a frequency of at least 1,000 Hz to Slaney's mel scale."""
    return _KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    """Converts values on Slaney's mel scale to frequencies in Hz."""
    knee = _KNEE / _LINEAR
    return np.where(mels < knee, mels * _LINEAR, _KNEE * np.exp((mels - knee) * _STEP))
