"""Field that reads a label: one of several classes, any number of classes, or a real number."""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.messages import listed
from jaxformer.data.sources import columns
from jaxformer.data.sources.sources import place, record, skippable
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError, InputError, shown

Kind = Literal["single_label", "multi_label", "regression"]
"""Kind of target: exactly one label per example (single_label), any number of labels (multi_label), or a real number
(regression).
"""

_PATH = "data.task.label"
_NUMERAL = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class LabelField(Field[np.ndarray]):
    """Field that reads the label of an example: a class, several classes, or a number.

    Batch rows, depending on `kind`:
      single_label: `labels` int32 [batch, 1], the index of the label.
      multi_label: `labels` float32 [batch, labels], 1 for each label that applies (multi-hot).
      regression: `labels` float32 [batch, 1], the number.
    """

    column: str = "label"
    """Name of the column with the label. It contains a label name or index (single_label), a list of names or indices
    or a multi-hot list such as [0, 1] (multi_label), or a finite number (regression).
    """
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model. For regression, the single name of the target."""
    kind: Kind = "single_label"
    """Kind of target: exactly one label per example (single_label), any number of labels (multi_label), or a real
    number (regression).
    """

    def features(self) -> dict[str, Feature]:
        size = len(self.labels) if self.kind == "multi_label" else 1
        return {"labels": Feature(size, "int32" if self.kind == "single_label" else "float32")}

    def read(self, example: Mapping[str, Any], path: str = f"{_PATH}.column") -> np.ndarray:
        """Reads the target of an example. Returns an array that depends on `kind`: the label index, int32 [1]
        (single_label), a multi-hot vector, float32 [labels] (multi_label), or the number, float32 [1] (regression).
        """
        if self.kind == "single_label":
            return np.array([self.index(example, path)], np.int32)
        if self.kind == "multi_label":
            return multi_hot(self._items(example, path), self.labels)
        found = columns.value(example, self.column, path)
        number = None if isinstance(found, bool | np.bool_) else _real(found)
        if number is None or not math.isfinite(number):
            expected = "a number" if number is None else "a finite float32 number"
            raise FieldError(path, f"={self.column!r}: the column holds {shown(found)}; expected {expected}")
        return np.array([number], np.float32)

    def index(self, example: Mapping[str, Any], path: str = f"{_PATH}.column") -> int:
        """Reads the label of an example that has exactly one label. Returns its index."""
        return label_index(columns.value(example, self.column, path), self.labels)

    def describe(self, target: np.ndarray) -> str:
        """Describes a target, as returned by `read`: the names of its labels, or its number."""
        if self.kind == "regression":
            return f"{float(target[0]):g}"
        indices = target if self.kind == "single_label" else np.flatnonzero(target)
        return ", ".join(self.labels[int(index)] for index in indices) or "none"

    def encode(self, value: np.ndarray, tokenizer: Tokenizer | None) -> np.ndarray:
        return value

    def transform(
        self, encoded: np.ndarray, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        return {"labels": encoded}, geometry

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str, first: int, path: str) -> None:
        """Checks the labels of a training source. Raises InputError if all examples have the same label, or if lists
        such as [0, 1] could be both multi-hot vectors and lists of label indices.

        Args:
          documents: examples of the source.
          name: name of the source, for error messages.
          first: number of evenly spaced examples to read before the others. They usually include two different labels,
            and the check then stops.
          path: path of the config field that names the column, for error messages.
        """
        if self.kind == "single_label":
            check_classes(documents, lambda example: self.index(example, path), self.labels, name, first)
        elif self.kind == "multi_label" and len(self.labels) < 3:
            self._check_lists(documents, path)

    def _items(self, example: Mapping[str, Any], path: str) -> list[Any]:
        found = columns.value(example, self.column, path)
        found = found.tolist() if isinstance(found, np.ndarray) else found
        if not isinstance(found, list | tuple):
            problem = f"the column holds {shown(found)}; expected a list of labels"
            raise FieldError(path, f"={self.column!r}: {problem}")
        return _numerals_as_indices(found, self.labels)

    def _check_lists(self, documents: Sequence[Mapping[str, Any]], path: str) -> None:
        """Raises InputError if the source contains a list such as [0, 1] that could be both a multi-hot vector and a
        list of label indices, and also contains a list of label indices.
        """
        ambiguous = indexed = None
        for index in range(len(documents)):
            items = None
            with skippable(documents, index):
                items = self._items(record(documents, index), path)
                multi_hot(items, self.labels)
            if items is None:
                continue
            if not _is_multi_hot(items, len(self.labels)):
                # An empty list counts as indices too: a multi-hot list would have zeros.
                indexed = index if not any(isinstance(item, str) for item in items) else indexed
            elif set(map(type, items)) == {int} and len(set(items)) == len(items) and max(items) < len(self.labels):
                ambiguous = index
        if ambiguous is not None and indexed is not None:
            raise InputError(
                f"{place(documents, ambiguous)}: {self._items(documents[ambiguous], path)} may be multi-hot or indices "
                f"of labels, and {place(documents, indexed)} has indices, {self._items(documents[indexed], path)}; "
                "expected the names of the labels, or multi-hot lists only"
            )


def check_classes(
    documents: Sequence[Any], label: Callable[[Any], int], labels: Sequence[str], name: str, first: int
) -> None:
    """Raises InputError if all documents of a source have the same label. Stops at the second distinct label.

    Args:
      documents: documents of the source.
      label: function that returns the label index of a document.
      labels: label names.
      name: name of the source, for messages.
      first: number of evenly spaced documents to read before the others. They usually include two different labels.
    """
    found: set[int] = set()
    for index in first_spread(len(documents), first):
        with skippable(documents, index):
            found.add(label(record(documents, index)))
        if len(found) > 1:
            return
    for only in found:
        raise InputError(f"{name}: every label is {labels[only]!r}; expected examples of at least two classes")


def first_spread(count: int, first: int) -> Iterator[int]:
    """Yields `first` evenly spaced indices below `count`, followed by all indices below `count` in order."""
    yield from np.linspace(0, count - 1, min(count, first)).astype(int).tolist()
    yield from range(count)


def label_index(label: Any, labels: Sequence[str]) -> int:
    """Returns the index of a label that is given by name or index. Raises InputError if the label is unknown.

    A string is first compared with the names and then read as an index: "1" is the label named "1" if it exists,
    otherwise the label with index 1. Surrounding white space is ignored.
    """
    if isinstance(label, str):
        if label in labels:
            return labels.index(label)
        stripped = label.strip()
        for index, name in enumerate(labels):
            if name.strip() == stripped:
                return index
        numeral = _NUMERAL.fullmatch(stripped)
        index = int(numeral[1]) if numeral else None
    else:
        number = None if isinstance(label, bool | np.bool_) else _real(label)
        index = int(number) if number is not None and number.is_integer() else None
    if index is not None and 0 <= index < len(labels):
        return index
    raise InputError(f"label {shown(label)}: unknown; expected one of {listed(labels)}, or an index from 0")


def multi_hot(items: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
    """Converts the labels of an example to a multi-hot vector, float32 [labels]. Raises InputError if an item is not a
    label.

    Args:
      items: names or indices of the labels that apply, or a list of 0 and 1 (or bool), one per label.
      labels: all label names.
    """
    if _is_multi_hot(items, len(labels)):
        return np.array(items, np.float32)
    target = np.zeros(len(labels), np.float32)
    found = [label_index(item, labels) for item in items]
    if len(set(found)) < len(found) and not all(isinstance(item, str) for item in items):
        raise InputError(
            f"labels {shown(list(items))}: an index is repeated; expected distinct indices, or "
            f"{len(labels)} zeros and ones"
        )
    target[found] = 1
    return target


def _numerals_as_indices(items: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """Converts items such as "0" to integers, if all items are numerals and none of them is a label name.

    Otherwise returns the items unchanged.
    """
    names = {name.strip() for name in labels}
    texts = [item.strip() for item in items if isinstance(item, str)]
    numerals = [numeral for text in texts if text not in names and (numeral := _NUMERAL.fullmatch(text))]
    return [int(numeral[1]) for numeral in numerals] if len(numerals) == len(items) else list(items)


def _is_multi_hot(items: Sequence[Any], count: int) -> bool:
    are_numbers = all(isinstance(item, numbers.Real | np.bool_) for item in items)
    return len(items) == count and are_numbers and all(item in (0, 1) for item in items)


def _real(value: Any) -> float | None:
    """Converts a value to a float. Values beyond the range of float32 become infinite. Returns None if the value is not
    a number.
    """
    if not isinstance(value, str | numbers.Real | np.number):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) else math.copysign(math.inf, number)
