"""Task of speech synthesis from texts in the voices of speakers (Ao et al. 2022)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.spectrogram import SpectrogramField
from jaxformer.data.fields.vector import VectorField
from jaxformer.data.sources import columns
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tasks.speaking import PreparedText
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class LetterField(Field[layouts.Document]):
    """Field that reads a text to be spoken, usually as letters, followed by the EOS token.

    Batch rows: `tokens` int32 [batch, length].
    """

    column: str = "text"
    """Name of the column with the text."""
    length: int = 450
    """Number of tokens per batch row, including the EOS token. A longer text is skipped rather than truncated."""

    reads_text: ClassVar[bool] = True

    def __post_init__(self):
        fields.at_least("data.task.text.length", self.length, 2)

    @property
    def requirement(self) -> str:
        return f"text in {self.column!r} of up to {self.length} tokens"

    def features(self) -> dict[str, Feature]:
        return {"tokens": Feature(self.length)}

    def check(self, tokenizer: Tokenizer | None) -> None:
        if tokenizer is not None:
            tokenizer.require("eos")

    def read(self, example: Mapping[str, Any], path: str = "data.task.text.column") -> str:
        return columns.text(example, self.column, path)

    def encode(self, value: str, tokenizer: Tokenizer) -> layouts.Document | None:
        if not value:
            return None
        try:
            tokens = letters(value, tokenizer)
        except InputError as error:
            skip(str(error))
            return None
        if len(tokens) > self.length:
            skip(f"{value[:40]!r}…: {len(tokens)} tokens: a row of {self.length} has no room for them")
            return None
        return layouts.Document(tokens, len(value))

    def transform(
        self, encoded: layouts.Document, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        del visit
        return {"tokens": encoded.tokens}, geometry


def letters(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes a text with the EOS token at its end. Returns token ids, int32 [tokens].

    Raises:
      InputError: If the vocabulary lacks a character of the text.
    """
    tokens, unknown = tokenizer.encode(text), tokenizer.special_id("unk")
    if unknown is not None and (tokens == unknown).any():
        ids, offsets = tokenizer.encode_with_offsets(text)
        start, stop = offsets[np.flatnonzero(ids == unknown)[0]]
        raise InputError(f"{text[:40]!r}: the vocabulary has no {text[start:stop]!r}, at character {start}")
    return np.append(tokens, tokenizer.eos_id).astype(np.int32)


def previous_frames(spectrogram: np.ndarray, reduction: int) -> np.ndarray:
    """Returns the inputs of a decoder that predicts a group of frames at a time: zeros, and then the last frame of each
    group except the last group, float32 [groups, mels].

    Args:
      spectrogram: log-mel spectrogram, float [frames, mels]. The last group may be incomplete.
      reduction: number of frames per group.
    """
    groups = -(-len(spectrogram) // reduction)
    zeros = np.zeros((1, spectrogram.shape[1]), np.float32)
    return np.concatenate([zeros, spectrogram[reduction - 1 :: reduction]])[:groups].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SpokenText(FieldTask):
    """Task of speech synthesis: a text, the vector of a speaker, and the spectrogram of the speech.

    A batch is a dict of arrays: `spectrogram` float32 [batch, frames, mels] and `frame_mask` uint8 [batch, frames], 1
    for frames of the speech; `frames` float32 [batch, frames / reduction, mels], the inputs of the decoder (see
    `previous_frames`); `tokens` int32 and `segments` [batch, length]; and `speaker` float32 [batch, size].
    """

    audio: SpectrogramField = SpectrogramField()
    """Settings for reading sounds: the column, the length, and the log-mel spectrogram."""
    text: LetterField = LetterField()
    """Settings for reading texts: the column and the length."""
    speaker: VectorField = VectorField()
    """Settings for reading the vectors of speakers, such as x-vectors (Snyder et al. 2018): the column and the size."""
    reduction: int = 2
    """Number of frames that the model predicts at a time."""

    def __post_init__(self):
        fields.at_least("data.task.reduction", self.reduction, 1)
        if self.audio.frames % self.reduction:
            problem = f"={self.audio.seconds}: {self.audio.frames} frames; expected a multiple of {self.reduction}"
            raise FieldError("data.task.audio.seconds", problem, owner="data.task")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        frames = Feature(self.audio.frames // self.reduction, "float32", shape=(self.audio.log_mel.mels,))
        others = {"frames": frames, "speaker": Feature(self.speaker.length, "float32")}
        return self.audio.features() | self.text.features() | others

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        found = self.transformed(values, visit)
        frames = previous_frames(found["spectrogram"], self.reduction)
        return {"speaker": found.pop(self.speaker.column), "frames": frames, **found}

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        del folder
        return (columns.first_words(self.text.read(example)),)

    def prepare_requests(self, requests: Sequence[str]) -> list[PreparedText]:
        """Checks the texts that a user asks to speak.

        Raises:
          InputError: If a text is empty.
        """
        for number, text in enumerate(requests, 1):
            if not text.strip():
                raise InputError(f"text {number}, {text[:40]!r}: has no words to speak")
        return [PreparedText(text.strip(), self.audio.log_mel) for text in requests]
