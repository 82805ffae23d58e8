"""Base class of the fields that a task consists of. Each field decodes and transforms one column of an example."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from jaxformer.data.examples import Example, Feature, Sized, Visit
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform

if TYPE_CHECKING:
    from jaxformer.data.fields.image import ImageField

EncodedT = TypeVar("EncodedT", bound=Sized)


class Field(abc.ABC, Generic[EncodedT]):
    """One column of a dataset, and how its values become arrays. Subclasses are frozen dataclasses with a field
    `column`.

    `read` and `encode` process each value once, and the result is cached. `transform` is applied each time that a
    document is read.
    """

    reads_text: ClassVar[bool] = False
    """Whether the field needs a tokenizer."""

    @property
    def frame(self) -> "ImageField | None":
        """Field that resizes and augments each image, or each frame of a video. None if the column contains neither
        images nor videos.
        """
        return None

    @property
    def unit(self) -> tuple[str, int] | None:
        """Name of the unit in which throughput is reported, such as "tokens", and the number of units per batch row.

        None if the field has no unit.
        """
        return None

    @property
    def requirement(self) -> str | None:
        """Phrase for error messages that names what a document must contain to be usable for this field, such as "image
        that can be decoded". None if `read` already checks everything.
        """
        return None

    @abc.abstractmethod
    def features(self) -> dict[str, Feature]:
        """Returns the layout in a batch row of each array that `transform` returns, keyed by the name of the array."""

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Checks that the tokenizer has what the field needs, such as special tokens. Raises InputError otherwise."""

    def for_evaluation(self) -> "Field[EncodedT]":
        """Returns this field without augmentation, for held-out data."""
        return self

    @abc.abstractmethod
    def read(self, example: Mapping[str, Any], path: str) -> Any:
        """Returns the value of the column in an example, checked but not yet decoded.

        Args:
          example: maps column names to values.
          path: path of the config field that names the column, such as `data.task.text.column`, for error messages.

        Raises:
          InputError: If the column does not exist or its value has the wrong type.
        """

    @abc.abstractmethod
    def encode(self, value: Any, tokenizer: Tokenizer | None) -> EncodedT | None:
        """Converts a value from `read` to the form that is cached, such as a text to its tokens.

        Returns None if the value cannot be used. No training example is then made from its document.
        """

    @abc.abstractmethod
    def transform(
        self, encoded: EncodedT, visit: Visit, geometry: GeometricTransform | None
    ) -> tuple[Example, GeometricTransform | None]:
        """Returns the arrays of a training example for one reading of a document.

        Args:
          encoded: result of `encode`.
          visit: this reading of the document, with its tokenizer and random generator.
          geometry: crop, flip or rotation that an earlier field applied to the image of the example. Boxes, points and
            masks must follow it. None if there is no earlier image field.

        Returns:
          The arrays, keyed by name, and the geometric transform to pass to later fields.
        """

    def request(self, example: Mapping[str, Any], folder: Path, path: str) -> str | None:
        """Returns an argument with which users can try the `predict` command: the text or the file path in this column
        of a dataset example. Returns None if the field does not provide one.

        Args:
          example: maps column names to values.
          folder: folder in which to save the value if it is in memory but `predict` takes a file, such as an image.
          path: path of the config field that names the column, such as `data.task.text.column`, for error messages.
        """
        return None
