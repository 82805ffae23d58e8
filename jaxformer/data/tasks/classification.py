"""Text classification task: predicts the label of a text or of a pair of texts."""

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
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import FieldError, shown

LOOKED_AT = 1000
"""Number of evenly spaced examples to read before the others when checking that a source has at least two different
labels. The check stops at the second label.
"""
PAIR = "\t"
"""Character between the two texts of a pair, where the `predict` command takes a pair as one argument."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An encoded text or text pair with its target."""

    first: np.ndarray
    """Tokens of the first text without special tokens, int32 [tokens]."""
    second: np.ndarray | None
    """Tokens of the second text without special tokens, int32 [tokens]. None if there is no second text."""
    target: np.ndarray
    """Target, in the form that `LabelField.read` returns: the index of the label, a multi-hot vector, or a number."""
    size: int
    """Number of characters in both texts, which counts as their size in the cache of encoded documents."""


@dataclasses.dataclass(frozen=True)
class Classify(Task[Labelled]):
    """Task to predict the label of a text or of a pair of texts (Devlin et al. 2019, §4.1).

    Batch rows, with `examples_per_row` examples each:
      `tokens`: int32 [batch, length]. The data pipeline adds `segments` and `position_ids` of the same shape.
      `token_types`: int32 [batch, length], 1 in the second text. Only for encoders.
      `cls_positions`: int32 [batch, examples], index of the first token of each example.
      `targets`: int32 [batch, examples] (single_label), float32 [batch, examples · labels] (multi_label) or float32
        [batch, examples] (regression).
      `weights`: float32 [batch, examples], 1 for each example.
    """

    text: str = "text"
    """Name of the column with the text, or with the first text of a pair."""
    pair: str | None = None
    """Name of the column with the second text. If None, the task reads single texts."""
    label: str = "label"
    """Name of the column with the label. It contains a label name or index (single_label), a list of names or indices
    or a multi-hot list such as [0, 1] (multi_label), or a finite number (regression).
    """
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model. For regression, the single name of the target."""
    kind: Kind = "single_label"
    """Kind of target: exactly one label per example (single_label), any number of labels (multi_label), or a real
    number (regression).
    """
    length: int = 128
    """Number of tokens per batch row. If a pair is too long, the end of its longer text is cut."""
    form: Form = "encoder"
    """Kind of model for which texts are laid out. For an encoder, texts a and b become [CLS] a [SEP] b [SEP]; for a
    decoder, a [EOS] b [EOS]. If an imported tokenizer defines its own special tokens (a template), these are used
    instead.
    """
    examples_per_row: int = 1
    """Number of examples per batch row. A number above 1 requires packing (`data.pack`)."""
    augmentation: TextAugmentation | None = None
    """Random augmentation of the texts, drawn again each time that training reads them. If None, texts are not
    augmented.
    """

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 4)
        fields.at_least("data.task.examples_per_row", self.examples_per_row, 1)
        expected = None
        if not self.labels or len(set(self.labels)) < len(self.labels):
            expected = "the model's label names, at least one, without duplicates"
        elif self.kind == "single_label" and len(self.labels) < 2:
            expected = "at least two labels"
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
        """Prepares the arguments of the `predict` command. Returns texts unchanged. If the task reads pairs, splits
        each argument that contains a tab into two texts.
        """
        if self.pair is None:
            return list(requests)
        return [_divided(text) if PAIR in text else text for text in requests]

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        self._target.check_source(documents, name, LOOKED_AT, "data.task.label")

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (PAIR.join(map(columns.first_words, self._texts(example))),)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        texts, target = self.read(example)
        return Demonstration((PAIR.join(texts),), self._target.describe(target))

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        """Returns the texts of an example (two if the task reads pairs, otherwise one), and the target (see
        `LabelField.read`).
        """
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


def _divided(text: str) -> tuple[str, str]:
    """Splits an argument of the `predict` command at its first tab into the two texts of a pair."""
    first, _, second = text.partition(PAIR)
    return first.strip(), second.strip()
