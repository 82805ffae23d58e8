"""Object detection task: images and the boxes of the objects in them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxformer.data.examples import Example
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.boxes import BoxField, BoxFormat
from jaxformer.data.fields.image import ImageField
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.base import Demonstration
from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.mosaics import Mosaics
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import mosaic
from jaxformer.errors import FieldError, InputError, shown

NO_LABEL = "N/A"
"""Placeholder in a list of label names for label ids that no object has. COCO has several of them, because its ids are
not consecutive.
"""
WHOLE = ("pad", "stretch")
"""Values of `ImageField.fit` for which the whole image, and so every box, stays visible."""


@dataclasses.dataclass(frozen=True)
class PreparedScene:
    """A decoded image, and its pixels after resizing and padding, for object detection."""

    path: str
    """Path of the image file. For an image in memory, a name for messages."""
    picture: Image.Image
    """The image before resizing."""
    pixels: np.ndarray
    """Pixels, uint8 [size, size, channels]."""
    mask: np.ndarray
    """Mask that is 1 for pixels of the image and 0 for padding, uint8 [size, size]."""


@dataclasses.dataclass(frozen=True)
class LabelledBoxes(Mosaics):
    """Object detection: an image, and the boxes and labels of the objects in it. An image may have no objects.

    Batch rows: `images` uint8 [batch, size, size, channels] and `pixel_mask` uint8 [batch, size, size] (see
    `ImageField`); `boxes`, `labels`, `box_weights`, `crowd`, `areas` and `image_size` (see `BoxField`); `weights`
    float32 [batch, 1], 1 for each image.
    """

    image: ImageField = ImageField(fit="pad")
    """How images are read, resized and augmented. `fit` must be `pad` or `stretch`, so that the whole image is visible.
    """
    objects: str = "objects"
    """Name of the column with the objects, a dict of lists (see `BoxField`)."""
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model."""
    max_boxes: int = 100
    """Number of boxes in a batch row, including padding. An image with more objects is an error."""
    box_format: BoxFormat = "pixels"
    """How the source writes boxes: `pixels` is left, upper, right and lower edge in pixels; `fractions` is upper, left,
    lower and right edge as fractions of the height and the width, as in TensorFlow Datasets.
    """

    def __post_init__(self):
        super().__post_init__()
        names = [name for name in self.labels if name != NO_LABEL]
        if not names or len(set(names)) < len(names):
            problem = f"={shown(self.labels)}: expected the model's label names, at least one, without duplicates"
            raise FieldError("data.task.labels", problem)
        if self.image.fit not in WHOLE:
            problem = f"={self.image.fit}: expected {' or '.join(WHOLE)}, because boxes outside a crop would be lost"
            raise FieldError("data.task.image.fit", problem, owner="data.task")
        _ = self._boxes  # Checks its fields.

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        return {"image": self.image, "objects": self._boxes}

    @functools.cached_property
    def _boxes(self) -> BoxField:
        return BoxField(self.objects, self.labels, self.max_boxes, self.box_format)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        """Decodes the image and reads its objects. Converts the boxes to pixels, and raises InputError if a box is not
        inside the image.
        """
        encoded = super().encode(example, tokenizer)
        if encoded.values is None:
            return encoded
        width, height = encoded.values["image"].picture.size
        objects = self._boxes.in_pixels(encoded.values["objects"], width, height)
        return FieldValues({**encoded.values, "objects": objects}, encoded.size)

    def combined(self, parts: Sequence[Example], rng: np.random.Generator) -> Example:
        """Combines the training examples of four images in one. Returns the first one if there would be more than
        `max_boxes` objects.
        """
        size, found = self.image.size, []
        sizes = [_extent(part, size) for part in parts]
        places = mosaic.quarters(sizes, size, rng)
        for part, extent, at in zip(parts, sizes, places, strict=True):
            center, half = part["boxes"][:, :2], part["boxes"][:, 2:] / 2
            edges = np.concatenate([center - half, center + half], axis=1) * np.array([*extent] * 2)
            edges, visible = mosaic.moved_boxes(edges, at)
            boxes = np.concatenate([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], axis=1) / size
            arrays = {name: part[name] for name in ("labels", "box_weights", "crowd", "areas")}
            arrays["boxes"] = boxes.astype(np.float32)
            found.append({name: array[visible] for name, array in arrays.items()})
        objects = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        if len(objects["labels"]) > self.max_boxes:
            return parts[0]
        objects["images"] = mosaic.combined([part["images"] for part in parts], places)
        if "pixel_mask" in parts[0]:
            objects["pixel_mask"] = np.ones_like(parts[0]["pixel_mask"])
        return {**parts[0], **objects}

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        objects = self._boxes.read(example)
        names = sorted(self.labels[int(label)] for label in objects.labels)
        return Demonstration(self.requests(example, folder), ", ".join(names) or "no objects")

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[PreparedScene]:
        """Decodes and resizes images without augmentation, as in evaluation. Images can be file paths or in memory.

        Raises InputError if an image cannot be decoded.
        """
        return [prepared(self.image, one, number) for number, one in enumerate(requests, 1)]


def _extent(example: Example, size: int) -> tuple[int, int]:
    """Returns the width and height of the image of an example without its padding, in pixels."""
    if "pixel_mask" not in example:
        return size, size
    mask = example["pixel_mask"]
    return int(mask.any(0).sum()), int(mask.any(1).sum())


def prepared(field: ImageField, image: pictures.ImageLike, number: int) -> PreparedScene:
    """Decodes and resizes an image without augmentation. Raises InputError if the image cannot be decoded.

    Args:
      field: how images are resized.
      image: the image.
      number: position of the image among the inputs, counted from 1, for error messages.
    """
    name = pictures.name_of(image, f"image {number}")
    try:
        picture = field.decode(image, name)
    except pictures.Undecodable as error:
        raise InputError(str(error)) from error
    pixels, geometry = field.fitted(picture)
    return PreparedScene(name, picture, pixels, field.mask(geometry))
