"""Text-pair task: pairs of texts with the same meaning, for sentence embeddings (Reimers & Gurevych 2019)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.layouts import TextPair
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.text import TextAugmentation


@dataclasses.dataclass(frozen=True)
class TextPairs(Task[TextPair]):
    """Pairs of texts with the same meaning, such as a question and its answer.

    Both columns may be the same: the two embeddings of one text then differ only by dropout (Gao et al. 2021).

    Batch rows: `inputs` int32 [batch, input_length] is the first text, with `input_segments` and `input_position_ids`.
    `tokens` int32 [batch, length] is the second text, with `segments` and `position_ids`. Both contain the special
    tokens of the tokenizer, such as [CLS] and [SEP]. `weights` float32 [batch, examples_per_row] is 1 for each pair.
    """

    length: int = 64
    """Number of tokens per batch row for the second text, and for the first text unless `input_length` is set. A longer
    text is truncated at its end.
    """
    first: str = "first"
    """Name of the column with the first text."""
    second: str = "second"
    """Name of the column with the second text. May be the same column as `first`."""
    input_length: int | None = None
    """Number of tokens per batch row for the first text, for example if questions are shorter than answers. If None, it
    is `length`.
    """
    examples_per_row: int = 1
    """Number of pairs per batch row. A number above 1 requires packing (`data.pack`)."""
    augmentation: TextAugmentation | None = None
    """Random augmentation of both texts, drawn again each time that training reads them. If None, texts are not
    augmented.
    """

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 3)
        fields.at_least("data.task.input_length", self.input_length, 3)
        fields.at_least("data.task.examples_per_row", self.examples_per_row, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        texts = {"tokens": Feature(self.length), "inputs": Feature(self.input_length or self.length)}
        return texts | {"weights": Feature(self.examples_per_row, "float32")}

    def for_evaluation(self) -> "TextPairs":
        return dataclasses.replace(self, augmentation=None)

    @property
    def requirement(self) -> str:
        return f"example with text in {self.first!r} and {self.second!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, "encoder", self.length)
        if self.input_length is not None:
            layouts.check_template(tokenizer, "encoder", self.input_length, path="data.task.input_length")
        layouts.check_packing(self.examples_per_row, pack)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        first, second = self.read(example)
        return columns.first_words(first), columns.first_words(second)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str]:
        first = columns.text(example, self.first, "data.task.first")
        return first, columns.text(example, self.second, "data.task.second")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> TextPair:
        texts = self.read(example)
        first, second = tokenizer.encode_batch(texts)
        return TextPair(first, second, sum(map(len, texts)))

    def examples(self, document: TextPair, visit: Visit[TextPair]) -> list[Example]:
        if not len(document.inputs) or not len(document.targets):
            return []
        first, second = document.inputs, document.targets
        if self.augmentation is not None:
            first, second = (self.augmentation(text, visit.tokenizer, visit.rng) for text in (first, second))
        texts = {
            name: layouts.lay_out(visit.tokenizer, "encoder", self.row[name].capacity, text).tokens
            for name, text in (("inputs", first), ("tokens", second))
        }
        return [texts | {"weights": np.ones(1, np.float32)}]
