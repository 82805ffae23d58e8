"""Semantic segmentation task: images and the labels of their pixels."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxformer.data.examples import Example
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.image import ImageField
from jaxformer.data.fields.mask import IGNORED, LabelMap, MaskField
from jaxformer.data.sources import columns, pictures
from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.mosaics import Mosaics
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import mosaic
from jaxformer.errors import FieldError, InputError, shown


@dataclasses.dataclass(frozen=True)
class PreparedPicture:
    """A decoded image for segmentation, in its original size."""

    path: str
    """Path of the image file. For an image in memory, a name for messages."""
    picture: Image.Image
    edge: int
    """Length in pixels to which the shorter side is resized before prediction."""


@dataclasses.dataclass(frozen=True)
class SegmentedImages(Mosaics):
    """Semantic segmentation: an image, and a mask with the label of each pixel.

    Batch rows: `images` uint8 [batch, size, size, channels]; `mask` uint8 [batch, size, size], 255 for pixels without a
    label (see `MaskField`); `weights` float32 [batch, 1], 1 for each image.
    """

    image: ImageField = ImageField(512)
    """How images are read, resized and augmented. Masks are cropped and flipped in the same way."""
    mask: str = "mask"
    """Name of the column with the mask (see `MaskField`)."""
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model."""
    zero_is_unlabelled: bool = False
    """Whether pixel value 0 in a source mask means no label, and 1 is the first label, as in ADE20K. If False, 0 is the
    first label.
    """
    objects: str | None = None
    """Name of a column with objects, if pixels of masks contain object numbers (from 1, 0 for background) instead of
    labels. The column is a dict whose list `label` has the label index i of each object, which selects `labels[i + 1]`;
    `labels[0]` is the background. If None, masks contain label indices.
    """

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= len(self.labels) < 255 or len(set(self.labels)) < len(self.labels):
            problem = f"={shown(self.labels)}: expected the model's label names, 2 to 254, without duplicates"
            raise FieldError("data.task.labels", problem)

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        return {"image": self.image, "mask": self._target}

    @functools.cached_property
    def _target(self) -> MaskField:
        count = 255 if self.objects is not None else len(self.labels)
        return MaskField(self.image.size, count, self.mask, self.zero_is_unlabelled)

    def combined(self, parts: Sequence[Example], rng: np.random.Generator) -> Example:
        places = mosaic.quarters([(self.image.size, self.image.size)] * mosaic.COUNT, self.image.size, rng)
        fills = {"images": 0, "mask": IGNORED}
        arrays = {name: mosaic.combined([part[name] for part in parts], places, fill) for name, fill in fills.items()}
        return {**parts[0], **arrays}

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        found = super().encode(example, tokenizer)
        if found.values is None:
            return found
        (width, height), mask = found.values["image"].picture.size, found.values["mask"]
        name = pictures.name_of(example[self.mask], "a mask of the source")
        if mask.labels.shape != (height, width):
            rows, across = mask.labels.shape
            raise InputError(f"{name}: a mask of {across} × {rows} pixels; its image has {width} × {height}")
        if self.objects is None:
            return found
        objects = columns.value(example, self.objects, "data.task.objects")
        return FieldValues({**found.values, "mask": self._of_objects(mask, objects, name)}, found.size)

    def _of_objects(self, mask: LabelMap, objects: Mapping[str, Any], name: str) -> LabelMap:
        """Returns a mask of labels, given a mask of object numbers (from 1, 0 for background). `objects` is a dict
        whose list `label` has the label of each object, and `name` is the name of the mask for error messages.
        """
        labels = np.asarray(objects["label"], int) + 1
        last = int(mask.labels[mask.labels != IGNORED].max(initial=0))
        if last > len(labels) or labels.max(initial=0) >= len(self.labels):
            expected = f"expected objects with labels up to the last of data.task.labels, {self.labels[-1]}"
            raise InputError(f"{name}: object {last} of {len(labels)}; {expected}")
        lookup = np.full(256, IGNORED, np.uint8)
        lookup[: len(labels) + 1] = [0, *labels]
        return LabelMap(lookup[mask.labels])

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[PreparedPicture]:
        """Decodes images for prediction, without resizing them. Raises InputError if an image cannot be decoded."""
        found = []
        for number, image in enumerate(requests, 1):
            name = pictures.name_of(image, f"image {number}")
            try:
                found.append(PreparedPicture(name, self.image.decode(image, name), self.image.edge))
            except pictures.Undecodable as error:
                raise InputError(str(error)) from error
        return found

    def scored(self, example: Mapping[str, Any]) -> tuple[PreparedPicture, np.ndarray] | None:
        """Returns the image and the mask of an example, both in the original size of the image. The mask is uint8
        [height, width], with 255 for pixels without a label. Returns None if the image cannot be decoded.
        """
        values = self.encode(example, None).values
        if values is None:
            return None
        picture = PreparedPicture(str(example[self.image.column])[:200], values["image"].picture, self.image.edge)
        return picture, values["mask"].labels
