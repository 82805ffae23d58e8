"""Pitch of speech: the fundamental frequency of each frame, by autocorrelation (Boersma 1993)."""

from typing import Any

import numpy as np
import scipy.fft

from jaxformer.data.transforms.log_mel import LogMel, hann

LOWEST, HIGHEST = 60.0, 400.0
"""Range of fundamental frequencies that are searched, in Hz."""
VOICED = 0.5
"""Minimum autocorrelation of a frame that has a pitch, at most 1."""
OCTAVE_COST = 0.02
"""Amount by which the autocorrelation must be higher for a frequency to be preferred to the one an octave above it."""
SILENCE = 1e-3
"""Minimum standard deviation of the samples of a frame that has a pitch."""
REFERENCE = 150.0
"""Frequency in Hz whose pitch is 0."""


def pitch(samples: np.ndarray, settings: LogMel) -> np.ndarray:
    """Computes the pitch of each frame of a sound.

    Args:
      samples: samples of the sound, float [samples].
      settings: settings of the spectrogram with whose frames the pitch is aligned.

    Returns:
      Pitch in octaves above `REFERENCE`, float32 [frames]. NaN for frames without a pitch, such as those of silence and
      of consonants without voice.
    """
    window, rate = settings.window, settings.rate
    half = window // 2
    padded = np.pad(np.asarray(samples, np.float64), (half, half + 1))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: settings.hop]
    frames = frames[: settings.frames(len(samples) / rate)]
    frames = (frames - frames.mean(1, keepdims=True)) * hann(window)
    lags = np.arange(int(rate / HIGHEST), min(half, int(np.ceil(rate / LOWEST))) + 1)
    found, of_window = _autocorrelation(frames), _autocorrelation(hann(window)[None])
    # Dividing by the autocorrelation of the window corrects for the frame's decrease toward its ends.
    found = found[:, lags] / np.maximum(found[:, :1], 1e-12) / of_window[:, lags]
    found *= of_window[:, :1]
    # Multiples of the period are as similar as the period itself.
    chosen = (found - OCTAVE_COST * np.log2(lags * LOWEST / rate)).argmax(1)
    voiced = (found[np.arange(len(found)), chosen] > VOICED) & (frames.std(1) > SILENCE)
    return np.where(voiced, np.log2(rate / lags[chosen] / REFERENCE), np.nan).astype(np.float32)


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Returns the autocorrelation of frames [frames, window] at each lag, float64 [frames, window]."""
    size = frames.shape[1]
    spectrum: Any = scipy.fft.rfft(frames, 2 * size, axis=-1)
    found: Any = scipy.fft.irfft(np.abs(spectrum) ** 2, 2 * size, axis=-1)
    return found[:, :size]


def averaged(values: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Averages values of frames over phonemes. Values that are NaN do not count.

    The value of a phoneme whose frames are all NaN, such as one without voice, is interpolated linearly between the
    phonemes around it. If no phoneme has a value, all are 0.

    Args:
      values: value of each frame, [frames].
      durations: number of frames of each phoneme, integers [phonemes].

    Returns:
      Value of each phoneme, float32 [phonemes].
    """
    count = len(durations)
    owner = np.repeat(np.arange(count), durations)
    valid = ~np.isnan(values[: len(owner)])
    owner, values = owner[valid], values[: len(valid)][valid]
    weights = np.bincount(owner, minlength=count)
    known = np.flatnonzero(weights)
    if not len(known):
        return np.zeros(count, np.float32)
    means = np.bincount(owner, values, count)[known] / weights[known]
    return np.interp(np.arange(count), known, means).astype(np.float32)
