"""Field that reads a segmentation mask: the label of each pixel of an image."""

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns, pictures
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform, mask_after
from jaxformer.errors import FieldError, InputError

IGNORED = 255
"""Pixel value in a mask that means no label."""
MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow image modes that a mask file may have: those with one number per pixel."""


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """Labels of the pixels of one image."""

    labels: np.ndarray
    """Index of the label of each pixel, uint8 [height, width]; 255 for pixels without a label."""

    @property
    def size(self) -> int:
        """Size of the mask in memory, in units of four bytes."""
        return self.labels.size // 4 + 1


@dataclasses.dataclass(frozen=True)
class MaskField(Field[LabelMap]):
    """Field that reads a segmentation mask, and applies the crops and flips of an image field before it to the mask.

    Batch rows: `mask` uint8 [batch, size, size], the index of the label of each pixel; 255 for pixels without a label,
    which losses and metrics ignore.
    """

    size: int = 512
    """Height and width of the masks in a batch. They equal the height and width of the images."""
    labels: int = 255
    """Number of labels. A mask with an index that is not below this number, other than 255, is an error."""
    column: str = "mask"
    """Name of the column with the mask: a path, the bytes of an image file, or an array of integers [height, width]."""
    zero_is_unlabelled: bool = False
    """Whether pixel value 0 in a source mask means no label, and 1 is the first label, as in ADE20K. If False, 0 is the
    first label.
    """

    def features(self) -> dict[str, Feature]:
        return {"mask": Feature(self.size, "uint8", shape=(self.size,))}

    def read(self, example: Mapping[str, Any], path: str = "data.task.mask.column") -> Any:
        return columns.value(example, self.column, path)

    def encode(self, value: Any, tokenizer: Tokenizer | None = None) -> LabelMap:
        name = pictures.name_of(value, "a mask of the source")
        labels = _numbers(value, name)
        if self.zero_is_unlabelled:
            labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.labels))]
        if wrong.size:
            first = int(wrong[0]) + self.zero_is_unlabelled
            last = self.labels - 1 + self.zero_is_unlabelled
            raise InputError(f"{name}: pixels of value {first}; expected labels up to {last}, or {IGNORED} for none")
        return LabelMap(labels.astype(np.uint8))

    def transform(
        self, encoded: LabelMap, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        if geometry is None:
            raise FieldError("data.task.mask", ": expected an image field before it, whose transform it follows")
        return {"mask": mask_after(encoded.labels, geometry, IGNORED)}, geometry


def _numbers(value: Any, name: str) -> np.ndarray:
    """Decodes a mask from a file path, the bytes of a file, or an array. Returns an int64 array [height, width]. `name`
    is the name of the mask for error messages.
    """
    if isinstance(value, np.ndarray):
        array = value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value
    else:
        try:
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else os.fspath(value)) as picture:
                if picture.mode not in MODES:
                    raise InputError(f"{name}: a mask of mode {picture.mode}; expected one number per pixel")
                array = np.asarray(picture)
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name}: cannot be decoded: {' '.join(str(error).split())}") from error
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise InputError(
            f"{name}: a mask of shape {array.shape} and type {array.dtype}; expected integers [height, width]"
        )
    return array.astype(np.int64)
