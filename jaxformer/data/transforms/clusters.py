"""Clusters of frames of speech, which HuBERT predicts (Hsu et al. 2021, §2.1): k-means of MFCC features."""

import dataclasses
import functools
import io
from collections.abc import Iterable

import numpy as np
import scipy.cluster.vq
import scipy.fft

from jaxformer import fields, storage
from jaxformer.data.transforms.framing import Framing
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.errors import InputError

COEFFICIENTS = 13
"""Number of cepstral coefficients."""
ITERATIONS = 20
"""Number of iterations of k-means."""


@dataclasses.dataclass(frozen=True)
class Mfcc:
    """Computes mel-frequency cepstral coefficients (Davis & Mermelstein 1980) with their first and second differences,
    for the frames that a model computes from a waveform.
    """

    framing: Framing = Framing()
    """Kernel sizes and strides of the model's convolutions."""
    rate: int = 16_000
    """Sampling rate in samples per second."""
    mels: int = 26
    """Number of mel bands from which the coefficients are computed."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Computes the features of each frame, float32 [frames, 39]. Each of them has mean 0 and variance 1 over the
        sound. `samples` is the waveform, float [samples].
        """
        frames = max(0, self.framing.frames(len(samples)))
        if not frames:
            return np.zeros((0, 3 * COEFFICIENTS), np.float32)
        # A spectrogram's frame is centered on its sample, and a model's frame starts there.
        centered = samples[self.framing.window // 2 :]
        centered = np.pad(centered, (0, max(0, frames * self.framing.hop - len(centered))))
        log_mel = LogMel(self.mels, self.rate, self.framing.window, self.framing.hop)(centered)[:frames]
        features = np.asarray(scipy.fft.dct(log_mel, norm="ortho", axis=1))[:, :COEFFICIENTS]
        parts = [features]
        for _ in range(2):
            parts.append(np.gradient(parts[-1], axis=0) if frames > 1 else np.zeros_like(features))
        found = np.concatenate(parts, axis=1)
        return ((found - found.mean(0)) / np.maximum(found.std(0), 1e-5)).astype(np.float32)


def fit_clusters(waveforms: Iterable[np.ndarray], clusters: int, mfcc: Mfcc = Mfcc(), seed: int = 0) -> np.ndarray:
    """Computes the centers of clusters by k-means, float32 [clusters, 39].

    Args:
      waveforms: waveforms, float [samples] each.
      clusters: number of clusters.
      mfcc: computes the features of frames.
      seed: random seed of the first centers.

    Raises:
      InputError: If there are fewer frames than clusters.
    """
    features = np.concatenate([np.zeros((0, 3 * COEFFICIENTS), np.float32), *map(mfcc, waveforms)])
    if len(features) < clusters:
        raise InputError(f"clusters={clusters}: the sounds have {len(features)} frames; expected at least as many")
    rng = np.random.default_rng(seed)
    centers, _ = scipy.cluster.vq.kmeans2(features, clusters, ITERATIONS, minit="++", rng=rng)
    return centers.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Assigns the frames of a sound to clusters, whose centers are in a file."""

    path: str = ""
    """Path of a .npy file with the centers of the clusters, as `fit_clusters` computes them."""
    mels: int = 26
    """Number of mel bands from which the features were computed."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("data.task.clusters.mels", self.mels, 1)

    @functools.cached_property
    def centers(self) -> np.ndarray:
        """Centers of the clusters, float32 [clusters, 39]. Raises InputError if the file cannot be read."""
        try:
            found = np.load(io.BytesIO(storage.read_bytes(self.path)), allow_pickle=False)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"data.task.clusters.path={self.path}: {reason.lower()}; give a .npy file") from error
        if found.ndim != 2 or found.shape[1] != 3 * COEFFICIENTS:
            raise InputError(
                f"data.task.clusters.path={self.path}: an array of {found.shape}; expected centers [clusters, 39]"
            )
        return found.astype(np.float32)

    def __call__(self, samples: np.ndarray, framing: Framing, rate: int) -> np.ndarray:
        """Returns the cluster of each frame, int32 [frames]: the one with the nearest center.

        Args:
          samples: waveform, float [samples].
          framing: kernel sizes and strides of the model's convolutions.
          rate: samples per second.
        """
        features = Mfcc(framing, rate, self.mels)(samples)
        distances = np.square(self.centers).sum(1) - 2 * features @ self.centers.T
        return distances.argmin(1).astype(np.int32)
