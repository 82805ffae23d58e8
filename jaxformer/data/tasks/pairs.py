"""Pairs of texts that mean the same, each by itself: what sentence embeddings learn from (Reimers & Gurevych 2019)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.sources import files
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tasks.language import Pair
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.text import TextAugmentation


@dataclasses.dataclass(frozen=True)
class TextPairs(Task):
    """Two texts that belong together, such as a question and its answer; or one text twice, which dropout makes two
    (Gao et al. 2021).

    Rows: `inputs` int32 [b, input_length] is the first text with the lanes' `input_segments` and `input_position_ids`,
    `tokens` int32 [b, length] the second one with `segments` and `position_ids`, each with the special
    tokens of the tokenizer's template, such as [CLS] and [SEP]; `weights` float32 [b, examples_per_row] is 1 for each
    pair.
    """

    length: int = 64
    """Tokens a row of either text; a longer one loses its end."""
    first: str = "first"
    """Column with the first text."""
    second: str = "second"
    """Column with the second text; the same column as `first` is that text again."""
    input_length: int | None = None
    """Tokens a row of the first text, where that is shorter, as questions are; None: `length`."""
    examples_per_row: int = 1
    """Pairs a row has room for; more than one only with packing."""
    augmentation: TextAugmentation | None = None
    """How both texts are changed at each visit in training."""

    def __post_init__(self):
        layouts.at_least("length", self.length, 3)
        layouts.at_least("input_length", self.input_length, 3)
        layouts.at_least("examples_per_row", self.examples_per_row, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        texts = {"tokens": Feature(self.length), "inputs": Feature(self.input_length or self.length)}
        return texts | {"weights": Feature(self.examples_per_row, "float32")}

    @property
    def evaluated(self) -> "TextPairs":
        return dataclasses.replace(self, augmentation=None)

    @property
    def need(self) -> str:
        return f"example with text in {self.first!r} and {self.second!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, "encoder", min(self.row[name].capacity for name in ("inputs", "tokens")))
        layouts.check_packing(self.examples_per_row, pack)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        columns = ("task.first", self.first), ("task.second", self.second)
        return tuple(files.first_words(files.text(example, column, name)) for name, column in columns)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str]:
        first = files.text(example, self.first, "task.first")
        return first, files.text(example, self.second, "task.second")

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Pair:
        first, second = self.read(example)
        return Pair(*tokenizer.encode_batch([first, second]), len(first) + len(second))

    def examples(
        self,
        document: Pair,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Pair],
    ) -> list[Example]:
        if not len(document.inputs) or not len(document.targets):
            return []
        first, second = document.inputs, document.targets
        if self.augmentation is not None:
            first, second = (self.augmentation(text, tokenizer, rng) for text in (first, second))
        texts = {
            name: layouts.lay_out(tokenizer, "encoder", self.row[name].capacity, text).tokens
            for name, text in (("inputs", first), ("tokens", second))
        }
        return [texts | {"weights": np.ones(1, np.float32)}]
