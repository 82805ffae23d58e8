"""Log-mel spectrograms: the input of speech recognizers (Radford et al. 2022, §2.2), and the output of models that
speak (Shen et al. 2018, §2.1).
"""

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import scipy.fft

from jaxformer import fields
from jaxformer.errors import FieldError

TINY = 1e-10
"""Lower bound of values that are divided by."""
PART = 4096
"""Number of frames for which spectra are computed at once, which limits memory use."""
RANGE = 8.0
"""Maximum difference between the largest and the smallest log10 energy of a sound. Smaller energies are raised to this
limit.
"""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Computes log-mel spectrograms: log10 of each mel band in each frame.

    Results equal those of `WhisperFeatureExtractor` in the transformers library or, with the fields of `SPOKEN`, those
    of `SpeechT5FeatureExtractor`.
    """

    mels: int = 80
    """Number of mel bands. Whisper large-v3 has 128."""
    rate: int = 16_000
    """Sampling rate in samples per second."""
    window: int = 400
    """Number of samples per frame. They are multiplied by a Hann window."""
    hop: int = 160
    """Number of samples between the starts of consecutive frames."""
    lowest: float = 0.0
    """Lower end of the first mel band in Hz."""
    highest: float = 8000.0
    """Upper end of the last mel band in Hz."""
    scale: Literal["recognition", "synthesis"] = "recognition"
    """Which values are computed. `recognition`: energies, at most 80 dB below the largest one of the sound, scaled to
    about -1 to 1, as in Whisper. `synthesis`: amplitudes, which are not scaled, so that each frame depends only on the
    samples near it, as in SpeechT5.
    """
    floor: float = 1e-10
    """Minimum energy or amplitude of a mel band. Lower values are raised to it before the logarithm."""

    def __post_init__(self):
        for field in ("mels", "rate", "window", "hop"):
            fields.at_least(f"data.task.audio.log_mel.{field}", getattr(self, field), 1)
        if not 0 <= self.lowest < self.highest:
            problem = f"={self.lowest}: expected 0 or more, below log_mel.highest={self.highest}"
            raise FieldError("data.task.audio.log_mel.lowest", problem)
        if not self.floor > 0:
            raise FieldError("data.task.audio.log_mel.floor", f"={self.floor}: expected above 0")

    @property
    def frames_per_second(self) -> float:
        """Number of spectrogram frames per second of sound."""
        return self.rate / self.hop

    def frames(self, seconds: float) -> int:
        """Returns the number of spectrogram frames of a sound that lasts `seconds` seconds."""
        return self._count(round(seconds * self.rate))

    @property
    def filters(self) -> np.ndarray:
        """Weights of the mel bands, float64 [1 + window // 2, mels]."""
        return mel_filters(self.mels, self.rate, self.window, self.highest, self.lowest)

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
        count = self._count(len(samples))
        if not count:
            return np.zeros((0, self.mels), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][:count]
        # In parts, because the frames of a long sound would take much memory.
        parts = [self._bands(frames[start : start + PART]) for start in range(0, count, PART)]
        logs = np.log10(np.maximum(np.concatenate(parts), self.floor))
        if self.scale == "synthesis":
            return logs.astype(np.float32)
        return ((np.maximum(logs, logs.max() - RANGE) + 4) / 4).astype(np.float32)

    def spectrum(self, log_mel: np.ndarray, iterations: int = 50) -> np.ndarray:
        """Estimates the amplitudes of the Fourier transform of each frame from a log-mel spectrogram.

        They are not determined by the mel bands, which are fewer. The estimate reproduces the bands with amplitudes
        that are not negative, by multiplicative updates (Lee & Seung 2001).

        Args:
          log_mel: log-mel spectrogram, float [frames, mels].
          iterations: number of updates.

        Returns:
          Amplitudes, float64 [frames, 1 + window // 2].
        """
        logs = np.asarray(log_mel, np.float64)
        bands = 10 ** (logs if self.scale == "synthesis" else 4 * logs - 4)
        wanted = bands @ self.filters.T
        found = np.maximum(wanted, TINY)
        for _ in range(iterations):
            found *= wanted / np.maximum(found @ self.filters @ self.filters.T, TINY)
        return found if self.scale == "synthesis" else np.sqrt(found)

    def _count(self, samples: int) -> int:
        """Returns the number of frames of a sound. As in transformers, those of `recognition` lack the last one."""
        return samples // self.hop + (self.scale == "synthesis")

    def _bands(self, frames: np.ndarray) -> np.ndarray:
        """Computes the mel bands of frames: of their energies, or of their amplitudes. `frames` is [frames, window],
        and the result is float64 [frames, mels].
        """
        spectrum: Any = scipy.fft.rfft(frames * hann(self.window), axis=-1)
        energies = spectrum.real**2 + spectrum.imag**2
        return (np.sqrt(energies) if self.scale == "synthesis" else energies) @ self.filters


SPOKEN = LogMel(80, 16_000, 1024, 256, 80.0, 7600.0, "synthesis")
"""Log-mel spectrograms of SpeechT5 and of the vocoder `HifiGan` that was trained for it: 62.5 frames per second."""


@functools.cache
def hann(size: int) -> np.ndarray:
    """Computes a periodic Hann window, float64 [size]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@functools.cache
def mel_filters(mels: int, rate: int, window: int, highest: float = 8000.0, lowest: float = 0.0) -> np.ndarray:
    """Returns the weights of triangular filters on Slaney's mel scale, float64 [1 + window // 2, mels]. Each filter has
    an area of 1.

    Args:
      mels: number of filters.
      rate: sampling rate in samples per second.
      window: number of samples of a Fourier transform.
      highest: upper end of the last filter in Hz.
      lowest: lower end of the first filter in Hz.
    """
    frequencies = np.arange(1 + window // 2) * rate / window
    edges = _hertz(np.linspace(_mel(lowest), _mel(highest), mels + 2))
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


# Slaney's scale is linear up to 1,000 Hz, with 15 mels there, and logarithmic above.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _mel(hertz: float) -> float:
    """Converts a frequency to Slaney's mel scale."""
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    """Converts values on Slaney's mel scale to frequencies in Hz."""
    knee = _KNEE / _LINEAR
    return np.where(mels < knee, mels * _LINEAR, _KNEE * np.exp((mels - knee) * _STEP))
