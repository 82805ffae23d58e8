"""Fields that read sounds: as log-mel spectrograms, or as any other arrays that subclasses of `AudioField` compute."""

import abc
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns, sounds
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.errors import FieldError, InputError

EXAMPLE = "example.wav"
"""Name of the sound file that a run writes to its folder as an example input for the `predict` command."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """A decoded sound, in the form that is cached."""

    samples: np.ndarray
    """Waveform at the sampling rate of the `SoundField`, float32 [samples]."""

    @property
    def size(self) -> int:
        """Size of the sound in memory, in units of four bytes."""
        return len(self.samples)


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSound:
    """A decoded sound for prediction, of any length."""

    path: str
    """Path of the sound file. For a sound in memory, a name for messages."""
    samples: np.ndarray
    """Waveform at the sampling rate of the field, float32 [samples]."""
    rate: int = 16_000
    """Sampling rate in samples per second."""


@dataclasses.dataclass(frozen=True)
class AudioField(Field[Samples]):
    """Base class of fields that read and decode a sound. A subclass computes the arrays of a batch row from it."""

    column: str = "audio"
    """Name of the column with the sound: a path, the bytes of a sound file, or samples (see `sounds.read_sound`)."""
    seconds: float = 30.0
    """Length in seconds to which sounds are padded. A longer sound is not used for training."""
    array_rate: int | None = None
    """Sampling rate, in samples per second, of sounds that are given as arrays, as in TensorFlow Datasets. If None,
    arrays have the sampling rate of the field.
    """
    strict: bool = False
    """Whether to stop at a sound that cannot be decoded or is too long. If False, such a sound is skipped with a note
    on standard error.
    """

    def __post_init__(self):
        fields.at_least("data.task.audio.array_rate", self.array_rate, 1)

    @property
    @abc.abstractmethod
    def sampling_rate(self) -> int:
        """Sampling rate of decoded sounds, in samples per second."""

    @property
    def unit(self) -> tuple[str, int]:
        return "seconds of audio", max(1, round(self.seconds))

    @property
    def requirement(self) -> str:
        return f"sound of up to {self.seconds:g} seconds that can be decoded"

    def read(self, example: Mapping[str, Any], path: str = "data.task.audio.column") -> sounds.SoundLike:
        sound = columns.value(example, self.column, path)
        if isinstance(sound, str):
            columns.check_text(sound, f"column {self.column!r}")
        return sound

    def encode(self, value: sounds.SoundLike, tokenizer: Tokenizer | None = None) -> Samples | None:
        name = self.name_of(value)
        try:
            samples = self._decode(value, name)
            self._check_length(len(samples) / self.sampling_rate, name)
        except sounds.Undecodable as error:
            if self.strict:
                raise FieldError("data.task.audio.strict", f"=True: {error}") from error
            skip(str(error))
            return None
        return Samples(samples)

    def name_of(self, value: sounds.SoundLike) -> str:
        """Returns the path of a sound for messages or, if it has none, the name of the column that contains it."""
        return sounds.name_of(value, f"the sound in {self.column!r}")

    def _check_length(self, length: float, name: str) -> None:
        """Raises `sounds.Undecodable` if the sound `name`, of `length` seconds, cannot be used."""
        if length > self.seconds:
            raise sounds.Undecodable(f"{name}: {length:.1f} seconds: longer than the rows of {self.seconds:g}")

    def request(self, example: Mapping[str, Any], folder: Path, path: str = "data.task.audio.column") -> str | None:
        sound = columns.value(example, self.column, path)
        if isinstance(sound, str | os.PathLike):
            return str(sound)
        file = folder / EXAMPLE
        if not file.exists():  # The file may belong to the user.
            try:
                write_wav(file, self._decode(sound, "the example"), self.sampling_rate)
            except sounds.Undecodable as error:
                raise InputError(str(error)) from error
        return str(file)

    def prepare(self, requests: Sequence[sounds.SoundLike]) -> list[PreparedSound]:
        """Decodes sounds of any length for prediction. Sounds can be file paths or in memory.

        Raises InputError if a sound cannot be decoded.
        """
        found = []
        for number, sound in enumerate(requests, 1):
            name = sounds.name_of(sound, f"sound {number}")
            try:
                found.append(PreparedSound(name, self._decode(sound, name), self.sampling_rate))
            except sounds.Undecodable as error:
                raise InputError(str(error)) from error
        return found

    def _decode(self, sound: sounds.SoundLike, name: str) -> np.ndarray:
        return sounds.read_sound(sound, self.sampling_rate, name, self.array_rate)


@dataclasses.dataclass(frozen=True)
class SoundField(AudioField):
    """Field that reads a sound and computes its log-mel spectrogram.

    Batch rows: `log_mel` float32 [batch, frames, mels], padded with silence to `seconds`.
    """

    log_mel: LogMel = LogMel()
    """Settings of the log-mel spectrogram: sampling rate, frame length and mel bands."""

    def __post_init__(self):
        if not self.seconds * self.log_mel.rate >= self.log_mel.hop:
            raise FieldError("data.task.audio.seconds", f"={self.seconds}: expected one frame or more")
        super().__post_init__()

    @property
    def sampling_rate(self) -> int:
        return self.log_mel.rate

    @property
    def frames(self) -> int:
        """Number of spectrogram frames in a batch row."""
        return self.log_mel.frames(self.seconds)

    def features(self) -> dict[str, Feature]:
        return {"log_mel": Feature(self.frames, "float32", shape=(self.log_mel.mels,))}

    def transform(
        self, encoded: Samples, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        return {"log_mel": self.spectrogram(encoded.samples)}, geometry

    def spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """Computes the log-mel spectrogram of a sound, float32 [frames, mels]. Shorter sounds are padded with silence
        to the length of a batch row, and longer ones are truncated. `samples` is the waveform, float [samples].
        """
        length = self.frames * self.log_mel.hop
        padded = np.zeros(length, np.float32)
        padded[: len(samples)] = samples[:length]
        return self.log_mel(padded)


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Returns the content of a 16-bit WAV file with samples (floats from -1 to 1, [samples]) at `rate` samples per
    second.
    """
    import wave

    with io.BytesIO() as content:
        with wave.open(content, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
        return content.getvalue()


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """Writes samples as a WAV file (see `wav`)."""
    path.write_bytes(wav(samples, rate))
