"""Field that reads vectors, such as those of speakers."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer import fields, storage
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class VectorField(Field[np.ndarray]):
    """Field that reads a vector: a list of numbers, or the path of a .npy file.

    Batch rows: `NAME` float32 [batch, length], where NAME is the column.
    """

    column: str = "speaker"
    """Name of the column with the vector, and of the array."""
    length: int = 512
    """Number of entries of the vector."""

    def __post_init__(self):
        fields.at_least("data.task.speaker.length", self.length, 1)

    def features(self) -> dict[str, Feature]:
        return {self.column: Feature(self.length, "float32")}

    def read(self, example: Mapping[str, Any], path: str = "data.task.speaker.column") -> np.ndarray:
        found = columns.value(example, self.column, path)
        try:
            return read_vector(found, self.length)
        except InputError as error:
            raise FieldError(path, f"={self.column!r}: {error}") from error

    def encode(self, value: np.ndarray, tokenizer: Tokenizer | None = None) -> np.ndarray:
        return value

    def transform(
        self, encoded: np.ndarray, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        return {self.column: encoded}, geometry


def read_vector(value: Any, length: int) -> np.ndarray:
    """Reads a vector.

    Args:
      value: list of numbers, array [length] or [1, length], or path of a .npy file with such an array.
      length: number of entries that the vector must have.

    Returns:
      The vector, float32 [length].

    Raises:
      InputError: If the file cannot be read, or does not contain a vector of this length.
    """
    where = f"{value}: " if isinstance(value, str) else ""
    try:
        array = np.load(io.BytesIO(storage.read_bytes(value)), allow_pickle=False) if where else np.asarray(value)
        array = array.astype(np.float32)
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0].lower()
        raise InputError(f"{where}{reason}; expected a vector of {length} numbers") from error
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.shape != (length,):
        found = f"a vector of {len(array)} numbers" if array.ndim == 1 else f"an array of shape {list(array.shape)}"
        raise InputError(f"{where}{found}; expected a vector of {length}")
    if not np.isfinite(array).all() or not array.any():
        raise InputError(f"{where}expected a vector of finite numbers, not all of them 0")
    return array
