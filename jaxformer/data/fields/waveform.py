"""Field that reads sounds as waveforms, for models that read samples instead of spectrograms."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.sound import AudioField, PreparedSound, Samples
from jaxformer.data.sources import sounds
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError

EPSILON = 1e-7
"""Number added to the variance of a waveform before it is normalized, to avoid division by zero."""


@dataclasses.dataclass(frozen=True)
class WaveformField(AudioField):
    """Field that reads a sound as a waveform. Results equal those of `Wav2Vec2FeatureExtractor` in the transformers
    library.

    Batch rows: `samples` float32 [batch, samples], padded with zeros to `seconds`, and `sample_mask` uint8 [batch,
    samples], 1 for samples of the sound.
    """

    rate: int = 16_000
    """Sampling rate in samples per second."""
    normalize: bool = True
    """Whether to scale each waveform to mean 0 and variance 1."""
    crop: Literal["none", "random", "start"] = "none"
    """Part of a sound longer than `seconds` that is used: a random stretch of this length, or its start. With `none`,
    the sound is left out. For held-out data, `random` becomes `start`.
    """

    def __post_init__(self):
        fields.at_least("data.task.audio.rate", self.rate, 1)
        if not self.capacity >= 1:
            raise FieldError("data.task.audio.seconds", f"={self.seconds}: expected one sample or more")
        super().__post_init__()

    @property
    def sampling_rate(self) -> int:
        return self.rate

    @property
    def capacity(self) -> int:
        """Number of samples in a batch row."""
        return round(self.seconds * self.rate)

    @property
    def requirement(self) -> str:
        return "sound that can be decoded" if self.crop != "none" else super().requirement

    def features(self) -> dict[str, Feature]:
        return {"samples": Feature(self.capacity, "float32"), "sample_mask": Feature(self.capacity, "uint8")}

    def for_evaluation(self) -> "WaveformField":
        return dataclasses.replace(self, crop="start") if self.crop == "random" else self

    def transform(
        self, encoded: Samples, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        samples, room = encoded.samples, self.capacity
        if len(samples) > room:
            start = int(visit.rng.integers(len(samples) - room + 1)) if self.crop == "random" else 0
            samples = samples[start : start + room]
        samples = self.normalized(samples)
        return {"samples": samples, "sample_mask": np.ones(len(samples), np.uint8)}, geometry

    def normalized(self, samples: np.ndarray) -> np.ndarray:
        """Scales a waveform to mean 0 and variance 1, if `normalize` is set. Returns float32 [samples]."""
        if not self.normalize:
            return samples
        return ((samples - samples.mean()) / np.sqrt(samples.var() + EPSILON)).astype(np.float32)

    def prepare(self, requests: Sequence[sounds.SoundLike]) -> list[PreparedSound]:
        """Decodes and normalizes sounds of any length for prediction. Sounds can be file paths or in memory.

        Raises InputError if a sound cannot be decoded.
        """
        return [dataclasses.replace(one, samples=self.normalized(one.samples)) for one in super().prepare(requests)]

    def _check_length(self, length: float, name: str) -> None:
        if self.crop == "none":
            super()._check_length(length, name)
