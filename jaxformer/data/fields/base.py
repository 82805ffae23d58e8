"""Base class of task fields. Each field decodes and transforms one column of an example."""

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

    `read` and `encode` process each value once; the result is cached. `transform` is applied at every visit.
    """

    reads_text: ClassVar[bool] = False
    """Whether the field needs a tokenizer."""

    @property
    def unit(self) -> tuple[str, int] | None:
        """Name of the unit for throughput, such as "tokens", and the number of units per row.

        None if the field has no unit.
        """
        return None

    @property
    def requirement(self) -> str | None:
        """Requirement on an example for this field, for error messages. None if `read` already checks everything."""
        return None

    @abc.abstractmethod
    def features(self) -> dict[str, Feature]:
        """Returns the layouts of the arrays that `transform` returns, by name."""

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raises InputError if the tokenizer does not fit the field."""

    def for_evaluation(self) -> "Field[EncodedT]":
        """Returns this field without augmentation, for held-out data."""
        return self

    @abc.abstractmethod
    def read(self, example: Mapping[str, Any], path: str) -> Any:
        """Returns the checked value of the column, not yet decoded.

        Args:
          example: columns by name.
          path: config field that names the column, for messages.

        Raises:
          InputError: If the column does not exist or its value has the wrong type.
        """

    @abc.abstractmethod
    def encode(self, value: Any, tokenizer: Tokenizer | None) -> EncodedT | None:
        """Returns the value in its cached form.

        None if the value cannot be used; its document then gives no example.
        """

    @abc.abstractmethod
    def transform(
        self, encoded: EncodedT, visit: Visit, geometry: GeometricTransform | None
    ) -> tuple[Example, GeometricTransform | None]:
        """Returns the arrays for one visit.

        Args:
          encoded: result of `encode`.
          visit: the visit, with its tokenizer and random generator.
          geometry: transform that an earlier field applied to the image of the example. Boxes, points and masks must
            follow it. None if there is no earlier image field.

        Returns:
          The arrays by name, and the geometric transform to pass to later fields.
        """

    def request(self, example: Mapping[str, Any], folder: Path, path: str) -> str | None:
        """Returns an argument for the `predict` command made from an example. None if the field does not provide one.

        Args:
          example: columns by name.
          folder: folder in which to write the request if it must be a file.
          path: config field that names the column, for messages.
        """
        return None
