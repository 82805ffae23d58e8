"""Base class of tasks that are composed of `Field` objects. Each `Field` decodes and transforms one column of an
example.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError, under


@dataclasses.dataclass(frozen=True)
class FieldValues:
    """The encoded values of one example of the source, one for each field of a task."""

    values: Mapping[str, Any] | None
    """Maps field names to values. None if one of them cannot be used; no training example is then made."""
    size: int
    """Size of the values in memory, in units of four bytes."""


@dataclasses.dataclass(frozen=True)
class FieldTask(Task[FieldValues]):
    """Task that consists of `Field` objects. Each of them reads one column and makes arrays from it. A batch row
    contains the arrays of one example.

    A subclass declares dataclass fields whose values are `Field` objects. These are applied in the order of
    declaration.

    Batch rows: the arrays of all `Field` objects; `weights` float32 [batch, 1], 1 for each example.
    """

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """Maps names to the `Field` objects of the task, in the order in which they are applied. By default, these are
        the dataclass fields whose values are `Field` objects.
        """
        return self._nested

    @functools.cached_property
    def _nested(self) -> dict[str, Field]:
        """Maps the names of dataclass fields to their values, for all dataclass fields whose value is a `Field`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Field)}

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        found = [feature for field in self.fields.values() for feature in field.features().items()]
        if len(dict(found)) < len(found):
            names = ", ".join(name for name, _ in found)
            raise ValueError(f"{type(self).__name__}: fields have arrays of the same name: {names}")
        return dict(found) | {"weights": Feature(1, "float32")}

    @property
    def reads_text(self) -> bool:
        return any(field.reads_text for field in self.fields.values())

    @property
    def unit(self) -> tuple[str, int]:
        return next((field.unit for field in self.fields.values() if field.unit), ("examples", 1))

    @property
    def requirement(self) -> str:
        return " and ".join(field.requirement for field in self.fields.values() if field.requirement)

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        if pack:
            raise InputError(f"data.pack=True: a row of {type(self).__name__} holds one example; expected False")
        for name, field in self._nested.items():
            with under(name):
                field.check(tokenizer)

    def for_evaluation(self) -> Self:
        return dataclasses.replace(self, **{name: field.for_evaluation() for name, field in self._nested.items()})

    def read(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._read(name, example) for name in self.fields}

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        values = {}
        for name, value in self.read(example).items():
            with under(name if name in self._nested else ""):
                values[name] = self.fields[name].encode(value, tokenizer)
            if values[name] is None:
                return FieldValues(None, 1)
        return FieldValues(values, sum(value.size for value in values.values()))

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        found = []
        for name, field in self._nested.items():
            with under(name):
                found.append(field.request(example, folder, f"data.task.{name}.column"))
        return tuple(request for request in found if request is not None)

    def examples(self, document: FieldValues, visit: Visit[FieldValues]) -> list[Example]:
        return [] if document.values is None else [self._example(document.values, visit)]

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        """Makes the training example for one reading of a document. `values` maps field names to the encoded values of
        the document.
        """
        return self.transformed(values, visit) | {"weights": np.ones(1, np.float32)}

    def transformed(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        """Applies the transforms of all fields to the encoded values of a document (keyed by field name), for one
        reading of it. Returns the resulting arrays, keyed by array name.

        Fields after an image field, such as boxes, are cropped, flipped or rotated in the same way as the image.
        """
        arrays, geometry = {}, None
        for name, field in self.fields.items():
            new, geometry = field.transform(values[name], visit, geometry)
            arrays |= new
        return arrays

    def _read(self, name: str, example: Mapping[str, Any]) -> Any:
        if name not in self._nested:
            return self.fields[name].read(example, f"data.task.{name}")
        with under(name):
            return self.fields[name].read(example, f"data.task.{name}.column")
