"""The label of a text or of a pair of texts: one of several, any of several, or a number."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.label import Kind, LabelField
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import FieldError, shown

LOOKED_AT = 1000
"""Examples, evenly spaced over a source, that are searched for a second class first."""
PAIR = "\t"
"""Separates the two texts of a pair that is given as one."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An encoded text or pair with its target."""

    first: np.ndarray
    """int32 [n], without special tokens."""
    second: np.ndarray | None
    """int32 [n], the second text of a pair."""
    target: np.ndarray
    """As `LabelField.read` returns it."""
    size: int
    """Characters of both."""


@dataclasses.dataclass(frozen=True)
class Classify(Task[Labelled]):
    """The label of a text, or of a pair of texts (Devlin et al. 2019, §4.1).

    Rows: `tokens`, with the lanes' `segments` and `position_ids`, and `token_types` (for an encoder: 1 in the second
    text) int32 [b, length]; `cls_positions` int32 [b, c], each example's first token; `targets` int32 [b, c], or
    float32 [b, c * labels] with `kind` multi_label, or float32 [b, c] with regression; `weights` float32 [b, c], 1 for
    each example. c is `examples_per_row`.
    """

    text: str = "text"
    """Column with the text, or with the first text of a pair."""
    pair: str | None = None
    """Column with the second text; None: there is none."""
    label: str = "label"
    """Column with the label: its name, or its index. With `kind` multi_label: a list of names or of indices, or one 0
    or 1 for each label (multi-hot; so with two labels, [0, 1] is the second label alone). With regression: a finite
    number."""
    labels: tuple[str, ...] = ()
    """Names of the labels in the order of their indices, the same as the model's; for regression the one name."""
    kind: Kind = "single_label"
    """The kind of target: one of the labels, any of them, or a number."""
    length: int = 128
    """Tokens in a row; if a pair does not fit, its longer text loses its end."""
    form: Form = "encoder"
    """The kind of model: an encoder reads [CLS] a [SEP] b [SEP], a decoder a and b with end tokens; both as the
    template of an imported tokenizer says, if it has one."""
    examples_per_row: int = 1
    """Examples that fit in a row; more than one only with packing."""
    augmentation: TextAugmentation | None = None
    """Random changes of the texts at each training visit."""

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 4)
        fields.at_least("data.task.examples_per_row", self.examples_per_row, 1)
        expected = None
        if not self.labels or len(set(self.labels)) < len(self.labels):
            expected = "the model's names, one or more, each once"
        elif self.kind == "single_label" and len(self.labels) < 2:
            expected = "two classes or more"
        elif self.kind == "regression" and len(self.labels) > 1:
            expected = "one name, with kind=regression"
        if expected:
            raise FieldError("data.task.labels", f"={shown(self.labels)}: expected {expected}")

    @functools.cached_property
    def _target(self) -> LabelField:
        return LabelField(self.label, self.labels, self.kind)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        examples, tokens = Feature(self.examples_per_row), Feature(self.length)
        target = self._target.features()["labels"]
        row = {"tokens": tokens} | ({"token_types": tokens} if self.form == "encoder" else {})
        return row | {
            "cls_positions": dataclasses.replace(examples, offset=True),
            "targets": dataclasses.replace(target, capacity=target.capacity * self.examples_per_row),
            "weights": dataclasses.replace(examples, dtype="float32"),
        }

    def for_evaluation(self) -> "Classify":
        return dataclasses.replace(self, augmentation=None)

    @property
    def requirement(self) -> str:
        return f"example with text in {self.text!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, self.form, self.length, pair=self.pair is not None)
        layouts.check_packing(self.examples_per_row, pack)

    def prepare_requests(self, requests: Sequence[str]) -> list[str | tuple[str, str]]:
        """Texts; if the task reads pairs, a tab separates the two texts of one."""
        if self.pair is None:
            return list(requests)
        return [tuple(map(str.strip, text.split(PAIR, 1))) if PAIR in text else text for text in requests]

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        self._target.check_source(documents, name, LOOKED_AT, "data.task.label")

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (PAIR.join(map(columns.first_words, self._texts(example))),)

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        """The text or both texts, and the target."""
        return self._texts(example), self._target.read(example, "data.task.label")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Labelled:
        texts, target = self.read(example)
        tokens = [tokenizer.encode(text) for text in texts]
        second = None if self.pair is None else tokens[1]
        return Labelled(tokens[0], second, target, sum(map(len, texts)))

    def examples(self, document: Labelled, visit: Visit[Labelled]) -> list[Example]:
        first, second = document.first, document.second
        if not len(first) or (second is not None and not len(second)):
            return []
        if self.augmentation is not None:
            first = self.augmentation(first, visit.tokenizer, visit.rng)
            second = None if second is None else self.augmentation(second, visit.tokenizer, visit.rng)
        laid = layouts.lay_out(visit.tokenizer, self.form, self.length, first, second)
        example = {"tokens": laid.tokens, "cls_positions": np.zeros(1, np.int32), "targets": document.target}
        example |= {"token_types": laid.token_types} if self.form == "encoder" else {}
        return [example | {"weights": np.ones(1, np.float32)}]

    def _texts(self, example: Mapping[str, Any]) -> list[str]:
        texts = [columns.text(example, self.text, "data.task.text")]
        return texts if self.pair is None else [*texts, columns.text(example, self.pair, "data.task.pair")]
