"""Fields that read a text to tokenize, or a list of token ids."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import FieldError, shown


@dataclasses.dataclass(frozen=True)
class TextField(Field[layouts.Document]):
    """Field that reads and tokenizes a text, and adds the special tokens of the tokenizer, such as [CLS] and [SEP].

    Batch rows: `tokens` int32 [batch, length], and the `segments` (the number of each token's example in the row) and
    `position_ids` that the data pipeline adds.
    """

    column: str = "text"
    """Name of the column with the text."""
    length: int = 64
    """Number of tokens per batch row. A longer text is truncated at its end."""
    form: Form = "encoder"
    """Whether to add the special tokens of an encoder ([CLS] and [SEP]) or of a decoder (EOS)."""
    augmentation: TextAugmentation | None = None
    """Random augmentation of the text, drawn again each time that training reads the text. If None, texts are not
    augmented.
    """

    reads_text: ClassVar[bool] = True

    def __post_init__(self):
        fields.at_least("data.task.text.length", self.length, 3)

    @property
    def unit(self) -> tuple[str, int]:
        return "tokens", self.length

    @property
    def requirement(self) -> str:
        return f"text in {self.column!r}"

    def features(self) -> dict[str, Feature]:
        return {"tokens": Feature(self.length)}

    def check(self, tokenizer: Tokenizer) -> None:
        layouts.check_template(tokenizer, self.form, self.length, path="data.task.text.length")

    def for_evaluation(self) -> "TextField":
        return dataclasses.replace(self, augmentation=None)

    def read(self, example: Mapping[str, Any], path: str = "data.task.text.column") -> str:
        return columns.text(example, self.column, path)

    def encode(self, value: str, tokenizer: Tokenizer) -> layouts.Document | None:
        tokens = tokenizer.encode(value)
        return layouts.Document(tokens, len(value)) if len(tokens) else None

    def transform(
        self, encoded: layouts.Document, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        tokens = encoded.tokens
        if self.augmentation is not None:
            tokens = self.augmentation(tokens, visit.tokenizer, visit.rng)
        return {"tokens": layouts.lay_out(visit.tokenizer, self.form, self.length, tokens).tokens}, geometry

    def request(self, example: Mapping[str, Any], folder: Path, path: str = "data.task.text.column") -> str:
        return columns.first_words(self.read(example, path))


@dataclasses.dataclass(frozen=True)
class TokenField(Field[np.ndarray]):
    """Field that reads token ids from a column of integers, such as image codes. No tokenizer is needed.

    Batch rows: `tokens` int32 [batch, length], and the `segments` (the number of each token's example in the row) and
    `position_ids` that the data pipeline adds.
    """

    column: str = "tokens"
    """Name of the column with the list of integers."""
    length: int = 256
    """Number of tokens per batch row. A longer list is truncated at its end."""
    vocab: int | None = None
    """Number of distinct tokens: ids must be below it. If None, ids have no upper bound."""

    def __post_init__(self):
        fields.at_least("data.task.tokens.length", self.length, 1)
        fields.at_least("data.task.tokens.vocab", self.vocab, 1)

    @property
    def unit(self) -> tuple[str, int]:
        return "tokens", self.length

    @property
    def requirement(self) -> str:
        return f"tokens in {self.column!r}"

    def features(self) -> dict[str, Feature]:
        return {"tokens": Feature(self.length)}

    def read(self, example: Mapping[str, Any], path: str = "data.task.tokens.column") -> list[int]:
        found = columns.items(example, self.column, path)
        limit = 2**31 if self.vocab is None else self.vocab
        for item in found:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < limit:
                problem = f"={self.column!r}: the column holds {shown(item)}; expected integers from 0 to {limit - 1}"
                raise FieldError(path, problem)
        return found

    def encode(self, value: list[int], tokenizer: Tokenizer | None) -> np.ndarray | None:
        return np.array(value[: self.length], np.int32) if value else None

    def transform(
        self, encoded: np.ndarray, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        return {"tokens": encoded}, geometry
