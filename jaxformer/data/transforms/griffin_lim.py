"""Converts log-mel spectrograms to sounds without a trained vocoder (Griffin & Lim 1984)."""

from typing import Any

import numpy as np
import scipy.fft

from jaxformer.data.transforms.log_mel import TINY, LogMel, hann

MOMENTUM = 0.99
"""Weight of the step by which each phase is extrapolated (Perraudin et al. 2013, α)."""


def griffin_lim(log_mel: np.ndarray, settings: LogMel, iterations: int = 60, seed: int = 0) -> np.ndarray:
    """Computes a sound with a given log-mel spectrogram, by the fast Griffin–Lim algorithm (Perraudin et al. 2013).

    The phases of the Fourier transform start at random. Each iteration computes a sound with the current phases, and
    replaces them by the phases of this sound.

    Args:
      log_mel: log-mel spectrogram, float [frames, mels].
      settings: settings with which the spectrogram was computed.
      iterations: number of times that the phases are replaced.
      seed: random seed of the first phases.

    Returns:
      Samples, float32 [(frames - 1) · hop].
    """
    if len(log_mel) < 2:
        return np.zeros(0, np.float32)
    amplitudes, window, hop = settings.spectrum(log_mel), hann(settings.window), settings.hop
    power = _overlap_added(np.broadcast_to(window**2, (len(amplitudes), settings.window)), hop)
    phases = np.exp(2j * np.pi * np.random.default_rng(seed).random(amplitudes.shape))

    def sound(phases):
        frames: Any = scipy.fft.irfft(amplitudes * phases, settings.window, axis=-1)
        return _overlap_added(frames * window, hop) / np.maximum(power, TINY)

    before = np.zeros_like(phases)
    for _ in range(iterations):
        frames = np.lib.stride_tricks.sliding_window_view(sound(phases), settings.window)[::hop]
        rebuilt: Any = scipy.fft.rfft(frames * window, axis=-1)
        phases = rebuilt - MOMENTUM / (1 + MOMENTUM) * before
        phases /= np.maximum(np.abs(phases), TINY)
        before = rebuilt
    half = settings.window // 2  # Frame i is centered on sample i · hop.
    return sound(phases)[half : half + (len(amplitudes) - 1) * hop].astype(np.float32)


def _overlap_added(frames: np.ndarray, hop: int) -> np.ndarray:
    """Adds frames [frames, window], each `hop` samples after the one before it. Returns the sums, [(frames - 1) · hop +
    window].
    """
    count, window = frames.shape
    parts = -(-window // hop)
    padded = np.zeros((count, parts * hop))
    padded[:, :window] = frames
    added = np.zeros((count + parts - 1) * hop)
    for part in range(parts):
        added[part * hop : (part + count) * hop] += padded[:, part * hop : (part + 1) * hop].ravel()
    return added[: (count - 1) * hop + window]
