"""Tasks in which a text, or a pair of texts, has a label: one of a few, several of them, or a number."""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer.data import files, layouts
from jaxformer.data.tasks import Example, Feature, Task
from jaxformer.data.text_augmentation import TextAugmentation
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.errors import InputError

LOOKED_AT = 1000
"""Examples of a source of which one must have another label than the first."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An encoded text or pair with what is to be predicted of it."""

    first: np.ndarray
    """int32 [n], without special tokens."""
    second: np.ndarray | None
    """int32 [n] of the second text of a pair."""
    target: np.ndarray
    """int32 [1], the label's number; float32 [labels], 1 for each that holds; float32 [1], a number."""
    size: int
    """Characters of both."""


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """The label of a text, or of a pair of texts (Devlin et al. 2019, section 4.1).

    Rows: `tokens`, with the lanes' `segments` and `positions`, and `token_types` (for an encoder: 1 in the second
    text) int32 [b, length]; `cls_positions` int32 [b, c], each example's first token; `targets` int32 [b, c], or
    float32 [b, c * labels] where `kind` is many, or float32 [b, c] where it is a number; `weights` float32 [b, c], 1
    for each example. c is `examples_per_row`.
    """

    text: str = "text"
    """Column with the text, or with the first one of a pair."""
    pair: str | None = None
    """Column with the second text; None: there is none."""
    label: str = "label"
    """Column with the label: its name or its number; a list of them where `kind` is many; a number to be predicted."""
    labels: tuple[str, ...] = ()
    """Names of the labels in the order of their numbers, those of the model; of a number, its one name."""
    kind: Literal["one", "many", "number"] = "one"
    """What is predicted: one label, any of the labels, or a number."""
    length: int = 128
    """Tokens a row; the longer text of what does not fit loses its end."""
    form: Form = "encoder"
    """The kind of model: an encoder reads [CLS] a [SEP] b [SEP], a decoder a and b with end tokens; either as the
    template of an imported tokenizer says, where there is one."""
    examples_per_row: int = 1
    """Examples a row has room for; more than one only with packing."""
    augmentation: TextAugmentation | None = None
    """How texts are changed at each visit in training."""

    def __post_init__(self):
        layouts.at_least("length", self.length, 4)
        layouts.at_least("examples_per_row", self.examples_per_row, 1)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels {self.labels}: give the model's names, one or more, each once")
        if self.kind == "one" and len(self.labels) < 2:
            raise InputError(f"task.labels {self.labels}: one class only; there is nothing to tell apart")
        if self.kind == "number" and len(self.labels) > 1:
            raise InputError(f"task.labels {self.labels}: a number has one name")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        examples, tokens = Feature(self.examples_per_row), Feature(self.length)
        each = len(self.labels) if self.kind == "many" else 1
        row = {"tokens": tokens} | ({"token_types": tokens} if self.form == "encoder" else {})
        return row | {
            "cls_positions": dataclasses.replace(examples, offset=True),
            "targets": Feature(each * self.examples_per_row, "int32" if self.kind == "one" else "float32"),
            "weights": dataclasses.replace(examples, dtype="float32"),
        }

    @property
    def evaluated(self) -> "Classify":
        return dataclasses.replace(self, augmentation=None)

    @property
    def need(self) -> str:
        return f"example with text in {self.text!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, self.form, self.length, pair=self.pair is not None)
        layouts.check_packing(self.examples_per_row, pack)

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        if self.kind != "one":
            return
        check_classes(map(self._number, spread(documents, LOOKED_AT)), self.labels, name)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        columns = [("task.text", self.text), *([("task.pair", self.pair)] if self.pair is not None else [])]
        return ("\t".join(files.first_words(files.text(example, column, name)) for name, column in columns),)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Labelled:
        texts = [files.text(example, self.text, "task.text")]
        if self.pair is not None:
            texts.append(files.text(example, self.pair, "task.pair"))
        tokens = [tokenizer.encode(text) for text in texts]
        second = None if self.pair is None else tokens[1]
        return Labelled(tokens[0], second, self._target(example), sum(map(len, texts)))

    def examples(
        self,
        document: Labelled,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Labelled],
    ) -> list[Example]:
        first, second = document.first, document.second
        if not len(first) or (second is not None and not len(second)):
            return []
        if self.augmentation is not None:
            first = self.augmentation(first, tokenizer, rng)
            second = None if second is None else self.augmentation(second, tokenizer, rng)
        laid = layouts.lay_out(tokenizer, self.form, self.length, first, second)
        example = {"tokens": laid.tokens, "cls_positions": np.zeros(1, np.int32), "targets": document.target}
        example |= {"token_types": laid.token_types} if self.form == "encoder" else {}
        return [example | {"weights": np.ones(1, np.float32)}]

    def _target(self, example: Mapping[str, Any]) -> np.ndarray:
        if self.kind == "one":
            return np.array([self._number(example)], np.int32)
        if self.kind == "many":
            value = self._value(example)
            if not isinstance(value, list | tuple | np.ndarray):
                raise InputError(f"task.label: {self.label!r} holds {value!r}; expected a list of labels")
            target = np.zeros(len(self.labels), np.float32)
            target[[number_of(label, self.labels) for label in value]] = 1
            return target
        value = self._value(example)
        try:
            return np.array([float(value)], np.float32)
        except (TypeError, ValueError):
            raise InputError(f"task.label: {self.label!r} holds {value!r}; expected a number") from None

    def _number(self, example: Mapping[str, Any]) -> int:
        return number_of(self._value(example), self.labels)

    def _value(self, example: Mapping[str, Any]) -> Any:
        return files.value(example, self.label, "task.label")


def spread(documents: Sequence[Any], count: int) -> Iterator[Any]:
    """As many of the documents, all where there are fewer, from the first to the last."""
    for index in np.linspace(0, len(documents) - 1, min(len(documents), count)).astype(int):
        yield documents[int(index)]


def check_classes(numbers: Iterable[int], labels: Sequence[str], name: str) -> None:
    """Raises InputError where the examples of the source `name` all have one label, given by its number."""
    found = set(numbers)
    if len(found) == 1:
        [number] = found
        raise InputError(f"{name}: one class only: every label is {labels[number]!r}; give other examples too")


def number_of(label: Any, labels: Sequence[str]) -> int:
    """The number of a label given by its name or its number; InputError where it is none of the labels."""
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, numbers.Integral) and not isinstance(label, bool) and 0 <= label < len(labels):
        return int(label)
    raise InputError(f"label {label!r}: not known; expected one of {', '.join(labels)}, or their numbers from 0")
