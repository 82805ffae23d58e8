"""Field that reads transcripts as characters, for models that spell what they hear."""

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
from jaxformer.data.tokenizers.characters import CharacterTokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.spelling import spoken
from jaxformer.errors import FieldError, InputError

MAX_NAMES = 5
"""Maximum number of characters that are not in the vocabulary in a message."""


@dataclasses.dataclass(frozen=True)
class Spelling:
    """A transcript as characters, in the form that is cached."""

    ids: np.ndarray
    """Ids of the characters, int32 [characters]."""

    @property
    def size(self) -> int:
        """Size of the ids in memory, in units of four bytes."""
        return len(self.ids)

    @property
    def frames(self) -> int:
        """Smallest number of frames from which a model with CTC can predict the transcript. Two equal characters in
        succession need a blank between them.
        """
        return len(self.ids) + int((self.ids[1:] == self.ids[:-1]).sum())


@dataclasses.dataclass(frozen=True)
class CharacterField(Field[Spelling]):
    """Field that reads a transcript as characters.

    Batch rows: `targets` int32 and `weights` float32 [batch, length]. Weights are 1 for characters and 0 for padding.
    """

    column: str = "text"
    """Name of the dataset column with the transcript."""
    length: int = 512
    """Maximum number of characters of a transcript. A longer one is skipped rather than truncated."""
    normalize: bool = True
    """Whether to reduce a transcript to its words, without punctuation and in the case of the vocabulary. If False, the
    vocabulary must contain all its characters.
    """
    strict: bool = False
    """Whether to stop at a transcript with characters that the vocabulary lacks. If False, such a transcript is skipped
    with a note on standard error.
    """

    reads_text: ClassVar[bool] = True

    def __post_init__(self):
        fields.at_least("data.task.text.length", self.length, 1)

    @property
    def requirement(self) -> str:
        return f"text in {self.column!r} of up to {self.length} characters of the vocabulary"

    def features(self) -> dict[str, Feature]:
        return {"targets": Feature(self.length), "weights": Feature(self.length, "float32")}

    def check(self, tokenizer: Tokenizer | None) -> None:
        self._vocabulary(tokenizer)

    def read(self, example: Mapping[str, Any], path: str = "data.task.text.column") -> str:
        return columns.text(example, self.column, path)

    def spelled(self, text: str, tokenizer: Tokenizer | None) -> str:
        """Returns a transcript as the model should spell it: the text itself, or its words if `normalize` is set."""
        vocabulary = self._vocabulary(tokenizer)
        if not self.normalize:
            return text
        return spoken(text).upper() if vocabulary.is_upper_case else spoken(text)

    def encode(self, value: str, tokenizer: Tokenizer | None) -> Spelling | None:
        text, vocabulary = self.spelled(value, tokenizer), self._vocabulary(tokenizer)
        if not text:
            return None
        problem, missing = "", vocabulary.unknown(text)
        if missing:
            shown = ", ".join(map(repr, missing[:MAX_NAMES])) + ", …" * (len(missing) > MAX_NAMES)
            problem = f"{value[:40]!r}: the vocabulary has no {shown}"
        elif len(text) > self.length:
            problem = f"{value[:40]!r}…: {len(text)} characters: a row of {self.length} has no room for them"
        if not problem:
            return Spelling(vocabulary.encode(text))
        if self.strict and missing:
            raise FieldError("data.task.text.strict", f"=True: {problem}")
        skip(problem)
        return None

    def transform(
        self, encoded: Spelling, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        return {"targets": encoded.ids, "weights": np.ones(len(encoded.ids), np.float32)}, geometry

    def _vocabulary(self, tokenizer: Tokenizer | None) -> CharacterTokenizer:
        if not isinstance(tokenizer, CharacterTokenizer):
            raise InputError(f"tokenizer={type(tokenizer).__name__}: expected Characters, because CTC spells words")
        return tokenizer
