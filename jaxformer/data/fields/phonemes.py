"""Field that reads the phonemes of speech with their times."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.phonemes import PhonemeTokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class TimedPhonemes:
    """The phonemes of a document with their times, in the form that is cached."""

    ids: np.ndarray
    """Ids of the phonemes, int32 [phonemes]."""
    starts: np.ndarray
    """Start of each phoneme in seconds, float32 [phonemes]."""

    @property
    def size(self) -> int:
        """Size of both arrays in memory, in units of four bytes."""
        return 2 * len(self.ids)

    def durations(self, settings: LogMel, frames: int) -> np.ndarray:
        """Returns the number of spectrogram frames of each phoneme, int32 [phonemes], in sum `frames`.

        The first phoneme begins with the first frame, and the last one ends with the last frame. A phoneme that is
        shorter than a frame may have none.
        """
        starts = np.round(self.starts * settings.frames_per_second).astype(np.int32)
        starts[0] = 0
        return np.diff(np.append(np.minimum(starts, frames), frames)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class PhonemeField(Field[TimedPhonemes]):
    """Field that reads phonemes and the second at which each starts.

    Batch rows: `tokens` int32 [batch, length], the ids of the phonemes.
    """

    column: str = "phonemes"
    """Name of the column with the list of phonemes. An empty phoneme is a pause."""
    starts: str = "phoneme_starts"
    """Name of the column with the start of each phoneme in seconds."""
    length: int = 256
    """Maximum number of phonemes of a document. A longer one is skipped."""

    reads_text: ClassVar[bool] = True

    def __post_init__(self):
        fields.at_least("data.task.phonemes.length", self.length, 1)

    @property
    def requirement(self) -> str:
        return f"up to {self.length} phonemes of the vocabulary in {self.column!r}"

    def features(self) -> dict[str, Feature]:
        return {"tokens": Feature(self.length)}

    def check(self, tokenizer: Tokenizer | None) -> None:
        self.vocabulary(tokenizer)

    def vocabulary(self, tokenizer: Tokenizer | None) -> PhonemeTokenizer:
        """Returns the tokenizer. Raises InputError if it is not one of phonemes."""
        if not isinstance(tokenizer, PhonemeTokenizer):
            raise InputError(f"tokenizer={type(tokenizer).__name__}: has no phonemes; expected jf.tokenizers.Phonemes")
        return tokenizer

    def read(
        self, example: Mapping[str, Any], path: str = "data.task.phonemes.column"
    ) -> tuple[list[str], list[float]]:
        names = columns.strings(example, self.column, path)
        path = f"{path.rpartition('.')[0]}.starts"
        starts = columns.items(example, self.starts, path)
        if len(starts) != len(names):
            problem = f"={self.starts!r}: {len(starts)} times of {len(names)} phonemes; expected as many"
            raise FieldError(path, problem)
        if any(isinstance(start, str) or not start >= 0 for start in starts) or sorted(starts) != starts:
            raise FieldError(path, f"={self.starts!r}: expected seconds from 0 on, in ascending order")
        return names, starts

    def encode(self, value: tuple[list[str], list[float]], tokenizer: Tokenizer | None) -> TimedPhonemes | None:
        names, starts = value
        missing = self.vocabulary(tokenizer).unknown(names)
        if missing or not 0 < len(names) <= self.length:
            problem = f"{missing[0]!r} is not in the vocabulary" if missing else f"{len(names)} phonemes"
            skip(f"phonemes {' '.join(names[:8])}…: {problem}; a row has room for {self.length}")
            return None
        return TimedPhonemes(self.vocabulary(tokenizer).ids_of(names), np.array(starts, np.float32))

    def transform(
        self, encoded: TimedPhonemes, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        del visit
        return {"tokens": encoded.ids}, geometry
