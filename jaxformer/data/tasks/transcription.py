"""Task of speech recognition and translation: a sound and the text that is said in it (Radford et al. 2022)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.sound import SoundField
from jaxformer.data.sources import columns
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Written
from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.sounds import SoundTask
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.speech_tokens import SpeechTask, SpeechTokens
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class TranscriptField(Field[layouts.Document]):
    """Field that reads a transcript, and adds special tokens: before it the start, language and task tokens, after it
    the EOS token.

    A batch has the arrays `tokens`, `targets`, `segments` and `position_ids` int32 and `weights` float32 [batch,
    length]. Each target is the next token.
    """

    column: str = "text"
    """Name of the dataset column with the transcript."""
    length: int = 448
    """Number of tokens per batch row, including special tokens. A longer transcript is skipped rather than truncated.
    """
    language: str = ""
    """Code of the spoken language, such as de. Empty for an English-only model, whose outputs have no language and task
    tokens.
    """
    speech_task: SpeechTask = "transcribe"
    """Whether the text is a transcript or an English translation."""

    reads_text: ClassVar[bool] = True

    def __post_init__(self):
        fields.at_least("data.task.text.length", self.length, 5)

    @property
    def unit(self) -> None:
        return None  # The sound has one.

    @property
    def requirement(self) -> str:
        return f"text in {self.column!r} of up to {self.length} tokens"

    def features(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    def check(self, tokenizer: Tokenizer) -> None:
        self.prefix(tokenizer)

    def prefix(self, tokenizer: Tokenizer) -> list[int]:
        """Returns the special tokens before a transcript: the start token, the language and task tokens unless
        `language` is empty, and the token for an output without timestamps.
        """
        return SpeechTokens.of(tokenizer).prefix(self.language or None, self.speech_task)

    def read(self, example: Mapping[str, Any], path: str = "data.task.text.column") -> str:
        return columns.text(example, self.column, path)

    def encode(self, value: str, tokenizer: Tokenizer) -> layouts.Document | None:
        if not value:
            return None
        tokens = tokenizer.encode(f" {value}")  # Every word of a transcript begins with a space.
        if len(self.prefix(tokenizer)) + len(tokens) > self.length:
            skip(f"{value[:40]!r}…: {len(tokens)} tokens: a row of {self.length} has no room for them")
            return None
        return layouts.Document(tokens, len(value))

    def transform(
        self, encoded: layouts.Document, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        ids = np.array([*self.prefix(visit.tokenizer), *encoded.tokens, visit.tokenizer.eos_id], np.int32)
        return layouts.text_example(ids), geometry


@dataclasses.dataclass(frozen=True)
class Transcription(SoundTask):
    """Task of speech recognition and translation: predicts the transcript of a sound, or its English translation.

    A batch is a dict of arrays: `log_mel` float32 [batch, frames, mels], and `tokens`, `targets`, `segments` and
    `position_ids` int32 and `weights` float32 [batch, length]. `segments` are 1 at tokens and 0 at padding.
    """

    audio: SoundField = SoundField()
    """Settings for reading sounds: the column, the length, and the log-mel spectrogram."""
    text: TranscriptField = TranscriptField()
    """Settings for reading transcripts: the column, the length, the language, and whether to translate."""
    translation: TranscriptField | None = None
    """Settings for reading translations, with the speech task `translate`. If given, each sound makes two examples, one
    with its transcript and one with its translation, and sounds that lack one of them are left out. If None, it makes
    one.
    """

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return self.audio.features() | self.text.features()

    def examples(self, document: FieldValues, visit: Visit[FieldValues]) -> list[Example]:
        if document.values is None:
            return []
        sound, _ = self.audio.transform(document.values["audio"], visit)
        texts = {name: field for name, field in self.fields.items() if name != "audio"}
        return [sound | field.transform(document.values[name], visit, None)[0] for name, field in texts.items()]

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        return Demonstration(self.requests(example, folder), self.text.read(example, "data.task.text.column"))

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        reference = self.text.read(example, "data.task.text.column")
        return Written("", reference, np.zeros(0, np.int32), False, False) if reference else None

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        super().check(tokenizer, pack)
        if self.audio.log_mel.frames(self.audio.seconds) % 2:
            raise FieldError("data.task.audio.seconds", f"={self.audio.seconds}: expected an even number of frames")
        if self.translation is not None and self.translation.length != self.text.length:
            length = f"={self.translation.length}: expected that of transcripts, text.length={self.text.length}"
            raise FieldError("data.task.translation.length", length)
        if self.translation is not None and self.translation.speech_task == self.text.speech_task:
            # Both texts would be targets of the same tokens.
            given = (
                f"={self.translation.speech_task}: expected another task than that of transcripts, such as translate"
            )
            raise FieldError("data.task.translation.speech_task", given)
