"""Task of speech recognition and translation: a sound and the text that is said in it (Radford et al. 2022)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.sound import PreparedSound, SoundField
from jaxformer.data.sources import columns, sounds
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Written
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.speech_tokens import SpeechTask, SpeechTokens
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class TranscriptField(Field[layouts.Document]):
    """Field that reads a transcript, and adds the start token, the language, the task and the end token.

    Rows: `tokens`, `targets` int32 and `weights` float32 [batch, length], and the `segments` and `position_ids` that
    the data pipeline adds. `tokens` are the prefix and the words; each target is the next token.
    """

    column: str = "text"
    """Name of the column with the transcript."""
    length: int = 448
    """Number of tokens per row. A longer transcript is left out, because its end would be missing."""
    language: str = ""
    """Code of the language that is spoken, such as de. Empty for a model that only knows English, whose outputs have no
    language and no task.
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
        """Returns the tokens before the words."""
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
class Transcription(FieldTask):
    """Sounds and their transcripts.

    Rows: `log_mel` float32 [batch, frames, mels]; `tokens`, `targets` int32 and `weights` float32 [batch, length]. The
    data pipeline adds `segments` (1 at tokens, 0 at padding) and `position_ids`.
    """

    audio: SoundField = SoundField()
    """How sounds are read."""
    text: TranscriptField = TranscriptField()
    """How transcripts are read and tokenized."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return self.audio.features() | self.text.features()

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        return self.transformed(values, visit)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        request = self.audio.request(example, folder)
        return () if request is None else (request,)

    def prepare_requests(self, requests: Sequence[sounds.SoundLike]) -> list[PreparedSound]:
        """Reads the sounds to transcribe, of any length.

        Raises:
          InputError: If a sound does not exist or cannot be decoded.
        """
        return self.audio.prepare(requests)

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        reference = self.text.read(example, "data.task.text.column")
        return Written("", reference, np.zeros(0, np.int32), False, False) if reference else None

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        super().check(tokenizer, pack)
        if self.audio.log_mel.frames(self.audio.seconds) % 2:
            raise FieldError("audio.seconds", f"={self.audio.seconds}: expected an even number of frames")
