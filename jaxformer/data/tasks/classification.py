"""Tasks in which a text, or a pair of texts, has a label: one of a few, several of them, or a number."""

import dataclasses
import functools
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer.data.messages import listed, shown
from jaxformer.data.sources import files
from jaxformer.data.sources.sources import located, place
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import InputError

LOOKED_AT = 1000
"""Examples, spread over a source, that are searched for a second class before all others are."""

_NUMERAL = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)

PAIR = "\t"
"""Separates the two texts of a pair that is given as one."""


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

    Rows: `tokens`, with the lanes' `segments` and `position_ids`, and `token_types` (for an encoder: 1 in the second
    text) int32 [b, length]; `cls_positions` int32 [b, c], each example's first token; `targets` int32 [b, c], or
    float32 [b, c * labels] where `kind` is many, or float32 [b, c] where it is a number; `weights` float32 [b, c], 1
    for each example. c is `examples_per_row`.
    """

    text: str = "text"
    """Column with the text, or with the first one of a pair."""
    pair: str | None = None
    """Column with the second text; None: there is none."""
    label: str = "label"
    """Column with the label: its name, or its number from 0. Where `kind` is many: a list of them, or as many zeros and
    ones as there are labels, which is multi-hot (so with two labels [0, 1] is the second label alone). Where `kind` is
    number: a finite number."""
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

    def asked(self, words: Sequence[str]) -> list[str | tuple[str, str]]:
        """Texts; where the task reads pairs, a tab separates the two texts of one."""
        if self.pair is None:
            return list(words)
        return [tuple(map(str.strip, text.split(PAIR, 1))) if PAIR in text else text for text in words]

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        if self.kind == "one":
            check_classes(documents, self._number, self.labels, name, LOOKED_AT)
        elif self.kind == "many" and len(self.labels) < 3:
            self._check_one_reading(documents)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        columns = [("task.text", self.text), *([("task.pair", self.pair)] if self.pair is not None else [])]
        return ("\t".join(files.first_words(files.text(example, column, name)) for name, column in columns),)

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        """The text or both texts, and the target."""
        texts = [files.text(example, self.text, "task.text")]
        if self.pair is not None:
            texts.append(files.text(example, self.pair, "task.pair"))
        return texts, self._target(example)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Labelled:
        texts, target = self.read(example)
        tokens = [tokenizer.encode(text) for text in texts]
        second = None if self.pair is None else tokens[1]
        return Labelled(tokens[0], second, target, sum(map(len, texts)))

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
            return multi_hot(self._items(example), self.labels)
        value = files.value(example, self.label, "task.label")
        number = None if isinstance(value, bool | np.bool_) else _real(value)
        if number is None:
            raise InputError(f"task.label: {self.label!r} holds {shown(value)}; expected a number")
        if not math.isfinite(number):
            raise InputError(f"task.label: {self.label!r} holds {shown(value)}; expected a finite number of 32 bits")
        return np.array([number], np.float32)

    def _number(self, example: Mapping[str, Any]) -> int:
        return number_of(files.value(example, self.label, "task.label"), self.labels)

    def _items(self, example: Mapping[str, Any]) -> list[Any]:
        value = files.value(example, self.label, "task.label")
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(value, list | tuple):
            raise InputError(f"task.label: {self.label!r} holds {shown(value)}; expected a list of labels")
        return _numerals_read(value, self.labels)

    def _check_one_reading(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Raises InputError where a list such as [0, 1] of two labels would be multi-hot among lists of numbers."""
        both = numbered = None
        for index in range(len(documents)):
            with located(documents, index):
                items = self._items(documents[index])
                multi_hot(items, self.labels)
            if not _is_multi_hot(items, len(self.labels)):
                # An empty list too: a multi-hot one would have zeros.
                numbered = index if not any(isinstance(item, str) for item in items) else numbered
            elif set(map(type, items)) == {int} and len(set(items)) == len(items) and max(items) < len(self.labels):
                both = index
        if both is not None and numbered is not None:
            raise InputError(
                f"{place(documents, both)}: {self._items(documents[both])} may be multi-hot or the numbers of labels, "
                f"and {place(documents, numbered)} has numbers, {self._items(documents[numbered])}; give the names of "
                "the labels, or multi-hot lists alone"
            )


def first_spread(count: int, some: int) -> Iterator[int]:
    """Indices from 0 to below `count`: first some that are spread evenly, then all."""
    yield from np.linspace(0, count - 1, min(count, some)).astype(int).tolist()
    yield from range(count)


def check_classes(
    documents: Sequence[Any], number: Callable[[Any], int], labels: Sequence[str], name: str, some: int
) -> None:
    """Raises InputError if all documents of a source have the same label; reads on until it finds a second one.

    Args:
        documents: of the source.
        number: gives the number of a document's label.
        labels: the names of the labels.
        name: the source's.
        some: documents to look at first, spread over the source.
    """
    found: set[int] = set()
    for index in first_spread(len(documents), some):
        with located(documents, index):
            found.add(number(documents[index]))
        if len(found) > 1:
            return
    for only in found:
        raise InputError(f"{name}: one class only: every label is {labels[only]!r}; give other examples too")


def number_of(label: Any, labels: Sequence[str]) -> int:
    """The number of a label given by its name or its number; InputError if it is none of the labels.

    A text is a name first, then a number: "1" is the label named 1, or else that with number 1. Blanks around it do
    not count.
    """
    if isinstance(label, str):
        if label in labels:
            return labels.index(label)
        stripped = label.strip()
        for number, name in enumerate(labels):
            if name.strip() == stripped:
                return number
        numeral = _NUMERAL.fullmatch(stripped)
        number = int(numeral[1]) if numeral else None
    else:
        value = None if isinstance(label, bool | np.bool_) else _real(label)
        number = int(value) if value is not None and value.is_integer() else None
    if number is not None and 0 <= number < len(labels):
        return number
    raise InputError(f"label {shown(label)}: not known; expected one of {listed(labels)}, or their numbers from 0")


def multi_hot(items: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
    """float32 [labels], 1 for each label that holds; InputError if an item is no label.

    Args:
        items: names or numbers of labels; or, for each label, 0 or 1 (or False or True), which is multi-hot.
        labels: the names of the labels.
    """
    if _is_multi_hot(items, len(labels)):
        return np.array(items, np.float32)
    target = np.zeros(len(labels), np.float32)
    found = [number_of(item, labels) for item in items]
    if len(set(found)) < len(found) and not all(isinstance(item, str) for item in items):
        raise InputError(
            f"labels {shown(list(items))}: a number is there twice; expected each once, or {len(labels)} zeros and ones"
        )
    target[found] = 1
    return target


def _numerals_read(items: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """The items, with numbers for texts such as "0" where all are such texts and none is a label's name."""
    names = {name.strip() for name in labels}
    found = [_NUMERAL.fullmatch(item.strip()) if isinstance(item, str) else None for item in items]
    if not all(found) or any(item.strip() in names for item in items):
        return list(items)
    return [int(numeral[1]) for numeral in found]


def _is_multi_hot(items: Sequence[Any], count: int) -> bool:
    are_numbers = all(isinstance(item, numbers.Real | np.bool_) for item in items)
    return len(items) == count and are_numbers and all(item in (0, 1) for item in items)


def _real(value: Any) -> float | None:
    """A number as float, infinite if 32 bits do not hold it; None if it is no number."""
    if not isinstance(value, str | numbers.Real | np.number):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None
    return number if abs(number) <= np.finfo(np.float32).max else math.copysign(math.inf, number)
