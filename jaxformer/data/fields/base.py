"""The fields of tasks: each decodes and transforms one column of an example."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from jaxformer.data.examples import Example, Feature, Sized, Visit
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform

EncodedT = TypeVar("EncodedT", bound=Sized)


class Field(abc.ABC, Generic[EncodedT]):
    """One column of an example. Subclasses are frozen dataclasses with a field `column`.

    A value passes through `read` and `encode` once and is then cached; `transform` is applied at each visit.
    """

    reads_text: ClassVar[bool] = False
    """Whether the field needs a tokenizer."""

    @property
    def unit(self) -> tuple[str, int] | None:
        """The unit that speed is reported in, such as tokens, and how many of them fit in a row; None if not this."""
        return None

    @property
    def requirement(self) -> str | None:
        """Requirement on an example for the field to be usable, for error messages; None if nothing beyond `read`."""
        return None

    @abc.abstractmethod
    def features(self) -> dict[str, Feature]:
        """The arrays that `transform` returns."""

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raises InputError if the tokenizer does not fit the field."""

    def for_evaluation(self) -> "Field[EncodedT]":
        """The field for held-out data: without augmentation."""
        return self

    @abc.abstractmethod
    def read(self, example: Mapping[str, Any], path: str) -> Any:
        """The value of the column, checked but not decoded; `path` is the config field that names the column.

        Raises:
          InputError: there is no such column, or it holds a value of a wrong type.
        """

    @abc.abstractmethod
    def encode(self, value: Any, tokenizer: Tokenizer | None) -> EncodedT | None:
        """The value as it is cached; None if it cannot be used, so that its document gives no example."""

    @abc.abstractmethod
    def transform(
        self, encoded: EncodedT, visit: Visit, geometry: GeometricTransform | None
    ) -> tuple[Example, GeometricTransform | None]:
        """The arrays of a visit.

        Args:
          encoded: what `encode` returned.
          visit: has the tokenizer and the generator.
          geometry: how the image of the example has been transformed by a field before this one, for boxes, points and
            masks to follow; None if there is no image before it.

        Returns:
          The arrays by name, and the geometry for the fields after this one.
        """

    def request(self, example: Mapping[str, Any], folder: Path, path: str) -> str | None:
        """A request to `predict` about an example, as a word of a command line; None if the field has none.

        Args:
          example: columns by name.
          folder: where to write a request that must be a file.
          path: the config field that names the column, for messages.
        """
        return None
