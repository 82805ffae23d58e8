"""Field that reads the objects of an image: their boxes and labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.label import label_index
from jaxformer.data.sources import columns
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform, boxes_after
from jaxformer.errors import FieldError, InputError, shown

BoxFormat = Literal["pixels", "fractions"]
"""How a source writes boxes: `pixels` is left, upper, right and lower edge in pixels; `fractions` is upper, left, lower
and right edge as fractions of the height and the width, as in TensorFlow Datasets.
"""
TOLERANCE = 1.0
"""Number of pixels by which a box may exceed its image, because of rounding. Such boxes are clipped."""
_PATH = "data.task.objects"


@dataclasses.dataclass(frozen=True)
class Objects:
    """Boxes, labels and other attributes of the objects in one image."""

    boxes: np.ndarray
    """Edges of the boxes, float32 [objects, 4], in the format of the source (see `BoxFormat`). After
    `BoxField.in_pixels`: left, upper, right and lower edge in pixels.
    """
    labels: np.ndarray
    """Label index of each object, int32 [objects]."""
    crowd: np.ndarray
    """Whether each box contains a crowd of objects instead of one, bool [objects]."""
    areas: np.ndarray | None
    """Area of each object in square pixels, float32 [objects]. If None, the areas of the boxes are used."""
    size: int = 1
    """Memory that the arrays of this image occupy, in units of four bytes."""
    picture: tuple[int, int] = (0, 0)
    """Width and height of the image in pixels. (0, 0) if it is not known yet."""


@dataclasses.dataclass(frozen=True)
class BoxField(Field[Objects]):
    """Field that reads the boxes and labels of the objects in an image.

    The column holds a dict of lists: `bbox` with four numbers per object, `label` with names or indices, and optionally
    `is_crowd` (whether the box contains a crowd of objects) and `area` (in square pixels).

    Batch rows:
      boxes: float32 [batch, max_boxes, 4], center x, center y, width and height as fractions of the image without its
        padding.
      labels: int32 [batch, max_boxes].
      box_weights: float32 [batch, max_boxes], 1 for objects, 0 for crowds and padding.
      crowd: uint8 [batch, max_boxes], 1 for crowds.
      areas: float32 [batch, max_boxes], in square pixels of the image as stored.
      image_size: int32 [batch, 2], height and width in pixels of the image as stored.
    """

    column: str = "objects"
    """Name of the column with the objects."""
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model."""
    max_boxes: int = 100
    """Number of boxes in a batch row, including padding. An image with more objects is an error."""
    format: BoxFormat = "pixels"
    """How the source writes boxes: see `BoxFormat`."""

    def __post_init__(self):
        fields.at_least("data.task.max_boxes", self.max_boxes, 1)

    def features(self) -> dict[str, Feature]:
        count = self.max_boxes
        return {
            "boxes": Feature(count, "float32", shape=(4,)),
            "labels": Feature(count),
            "box_weights": Feature(count, "float32"),
            "crowd": Feature(count, "uint8"),
            "areas": Feature(count, "float32"),
            "image_size": Feature(2),
        }

    def read(self, example: Mapping[str, Any], path: str = _PATH) -> Objects:
        """Reads the objects of an example.

        If the example has the columns `width` and `height`, also converts the boxes to pixels, and checks that they are
        inside an image of this size.

        Raises:
          InputError: If a list is missing or has the wrong length, a label is unknown, or a box is not valid.
        """
        found = columns.value(example, self.column, path)
        if not isinstance(found, Mapping):
            problem = f"the column holds {shown(found)}; expected a dict with the lists bbox and label"
            raise FieldError(path, f"={self.column!r}: {problem}")
        boxes, names = (columns.items(found, key, path) for key in ("bbox", "label"))
        if len(boxes) != len(names):
            raise FieldError(path, f"={self.column!r}: {len(boxes)} boxes and {len(names)} labels; expected as many")
        if len(boxes) > self.max_boxes:
            problem = f"={self.max_boxes}: an image has {len(boxes)} objects; expected at least {len(boxes)}"
            raise FieldError("data.task.max_boxes", problem)
        labels = [label_index(name, self.labels) for name in names]
        crowd = self._optional(found, "is_crowd", len(boxes), path)
        areas = self._optional(found, "area", len(boxes), path)
        objects = Objects(
            np.array([_numbers(box, number) for number, box in enumerate(boxes, 1)], np.float32).reshape(-1, 4),
            np.array(labels, np.int32),
            np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, bool),
            None if areas is None else np.array(areas, np.float32),
            size=8 * len(boxes) + 8,
        )
        if "width" in example and "height" in example:
            return self.in_pixels(objects, int(example["width"]), int(example["height"]))
        return objects

    def _optional(self, found: Mapping[str, Any], key: str, count: int, path: str) -> list[Any] | None:
        if key not in found:
            return None
        values = columns.items(found, key, path)
        if len(values) != count:
            raise FieldError(path, f"={self.column!r}: {count} boxes and {len(values)} of {key}; expected as many")
        return values

    def in_pixels(self, objects: Objects, width: int, height: int) -> Objects:
        """Converts boxes to pixels of an image of the given size, and checks that they are inside of it.

        Raises:
          InputError: If a box is outside the image by more than `TOLERANCE`, or its edges are in the wrong order.
        """
        if objects.picture == (width, height):
            return objects
        if objects.picture != (0, 0):
            was = f"{objects.picture[0]} × {objects.picture[1]}"
            raise InputError(f"the columns width and height are {was}; the image has {width} × {height} pixels")
        boxes, sizes = objects.boxes, np.array([width, height, width, height], np.float32)
        if self.format == "fractions":
            boxes = boxes[:, [1, 0, 3, 2]] * sizes
        for number, box in enumerate(boxes, 1):
            ordered = box[0] <= box[2] and box[1] <= box[3]
            if not ordered or (box < -TOLERANCE).any() or (box > sizes + TOLERANCE).any():
                edges = ", ".join(f"{edge:g}" for edge in box)
                raise InputError(
                    f"box {number}: left, upper, right and lower edge are {edges}; expected them in order and inside "
                    f"the image of {width} × {height} pixels"
                )
        boxes = np.clip(boxes, 0, sizes)
        return dataclasses.replace(objects, boxes=boxes, picture=(width, height))

    def encode(self, value: Objects, tokenizer: Tokenizer | None = None) -> Objects:
        return value

    def transform(
        self, encoded: Objects, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        """Returns boxes, labels and the other arrays of the class docstring for one image, keyed by name and not yet
        padded. The boxes are cropped and flipped together with the image, and objects without a visible area are left
        out.
        """
        if geometry is None:
            raise ValueError("boxes need an image field before them")
        boxes, visible = boxes_after(encoded.boxes, geometry)
        corners = encoded.boxes[visible]
        areas = (corners[:, 2:] - corners[:, :2]).prod(1) if encoded.areas is None else encoded.areas[visible]
        boxes = boxes[visible] / np.array([geometry.width, geometry.height] * 2, np.float32)
        crowd = encoded.crowd[visible]
        return {
            "boxes": np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1),
            "labels": encoded.labels[visible],
            "box_weights": (~crowd).astype(np.float32),
            "crowd": crowd.astype(np.uint8),
            "areas": areas.astype(np.float32),
            "image_size": np.array(encoded.picture[::-1], np.int32),
        }, geometry


def _numbers(box: Sequence[Any], number: int) -> list[float]:
    """Checks that a box is a sequence of four finite numbers, and returns them. `number` counts the boxes of an image
    from 1, for error messages.
    """
    values = list(box.tolist() if isinstance(box, np.ndarray) else box) if np.iterable(box) else []
    real = [isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values]
    if len(values) != 4 or not all(real) or not np.isfinite(values).all():
        raise InputError(f"box {number}: {shown(box)}; expected four finite numbers")
    return values
