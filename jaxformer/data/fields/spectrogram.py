"""Field that reads sounds as the log-mel spectrograms that models of speech synthesis predict."""

import dataclasses

import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.sound import Samples, SoundField
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.log_mel import SPOKEN, LogMel
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class SpectrogramField(SoundField):
    """Field that reads a sound and computes the log-mel spectrogram that a model learns to speak.

    Batch rows: `spectrogram` float32 [batch, frames, mels] and `frame_mask` uint8 [batch, frames], 1 for frames of the
    sound and 0 for padding.
    """

    seconds: float = 12.0
    """Maximum length of a sound in seconds. A longer sound is not used for training."""
    log_mel: LogMel = SPOKEN
    """Settings of the log-mel spectrogram: sampling rate, frame length and mel bands. Its scale is `synthesis`."""

    def __post_init__(self):
        super().__post_init__()
        if self.log_mel.scale != "synthesis":
            raise FieldError("data.task.audio.log_mel", f".scale={self.log_mel.scale}: expected synthesis")

    @property
    def frames(self) -> int:
        """Number of spectrogram frames in a batch row."""
        return round(self.seconds * self.log_mel.rate) // self.log_mel.hop

    def features(self) -> dict[str, Feature]:
        spectrogram = Feature(self.frames, "float32", shape=(self.log_mel.mels,))
        return {"spectrogram": spectrogram, "frame_mask": Feature(self.frames, "uint8")}

    def transform(
        self, encoded: Samples, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        del visit
        return self.arrays(encoded.samples), geometry

    def arrays(self, samples: np.ndarray) -> Example:
        """Computes the arrays of a sound, without padding. `samples` is the waveform, float [samples]."""
        spectrogram = self.log_mel(samples)[: self.frames]
        return {"spectrogram": spectrogram, "frame_mask": np.ones(len(spectrogram), np.uint8)}
