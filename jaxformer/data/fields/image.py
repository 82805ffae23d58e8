"""Field that reads images, and resizes and augments them.

A batch row consists of the pixel rows of one image: `size` entries, each of shape [size, channels].
"""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.sources import columns, pictures
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.geometry import GeometricTransform, resized_box
from jaxformer.data.transforms.image import Augmentation, Fit, Resample, fitted, padded, pixels, size_within
from jaxformer.data.transforms.scale_jitter import ScaleJitter
from jaxformer.errors import FieldError, InputError

EXAMPLE = "example.png"
"""Name of the image file that a run writes to its folder as an example input for the `predict` command."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image, in the form that is cached."""

    picture: Image.Image
    """Image as a Pillow object."""
    size: int
    """Size of the image in memory, in units of four bytes."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image that is resized and cropped for prediction."""

    path: str
    """Path of the image file. For an image in memory, a name for messages."""
    pixels: np.ndarray
    """Pixels, uint8 [size, size, channels]."""


@dataclasses.dataclass(frozen=True)
class ImageField(Field[Picture]):
    """Field that reads an image and resizes it to a square, or pads it to a square (`fit="pad"`).

    Batch rows: `images` uint8 [batch, size, size, channels]. With `fit="pad"`, also `pixel_mask` uint8 [batch, size,
    size], 1 for pixels of the image and 0 for padding at the right and at the bottom.
    """

    size: int = 224
    """Height and width of the images in a batch, in pixels."""
    channels: int = 3
    """Number of channels: 1 for grayscale, 3 for color."""
    column: str = "image"
    """Name of the column with the image: a path, the bytes of an image file, or pixels (see
    `pictures.read_picture`)."""
    augmentation: Augmentation | ScaleJitter | None = None
    """Random augmentation of the image, drawn again each time that training reads the image. If None, images are not
    augmented.
    """
    fit: Fit = "crop"
    """How an image without augmentation becomes a square. `crop` resizes its shorter side, `stretch` resizes both
    sides, and `none` does not resize; a center crop follows. `pad` keeps the aspect ratio and pads the image instead.
    """
    shortest: int | None = None
    """Only used by `fit="pad"`: length in pixels to which the shorter side is resized, unless the longer side would
    exceed `size`. If None, the longer side is resized to `size`.
    """
    crop: float = 1.0
    """Fraction of the resized image that the center crop keeps, per side: images are resized to size / crop pixels.
    0.875 is common for ImageNet.
    """
    resample: Resample = "bicubic"
    """Interpolation filter for resizing."""
    strict: bool = False
    """Whether to stop at an image that cannot be decoded. If False, such an image is skipped with a note on standard
    error.
    """

    def __post_init__(self):
        fields.at_least("data.task.image.size", self.size, 1)
        if self.channels not in pictures.MODES:
            raise FieldError("data.task.image.channels", f"={self.channels}: expected 1 (grayscale) or 3 (RGB)")
        if not 0 < self.crop <= 1:
            raise FieldError("data.task.image.crop", f"={self.crop}: expected above 0, at most 1")
        if self.fit == "pad" and self.crop != 1:
            raise FieldError("data.task.image.crop", f"={self.crop}: expected 1 with fit=pad, which does not crop")
        if self.shortest is not None and (self.fit != "pad" or not 1 <= self.shortest <= self.size):
            problem = f"={self.shortest}: expected None, or with fit=pad from 1 to data.task.image.size={self.size}"
            raise FieldError("data.task.image.shortest", problem)
        if self.augmentation is not None and self.fit != "pad" and not self.augmentation.fills_square:
            kind = type(self.augmentation).__name__
            raise FieldError("data.task.image.fit", f"={self.fit}: expected pad with augmentation={kind}")

    @property
    def frame(self) -> "ImageField":
        return self

    @property
    def unit(self) -> tuple[str, int]:
        return "images", 1

    @property
    def requirement(self) -> str:
        return "image that can be decoded"

    @property
    def edge(self) -> int:
        """Length in pixels to which `fit` resizes the shorter side or both sides, before the center crop to `size`
        pixels."""
        return round(self.size / self.crop)

    def features(self) -> dict[str, Feature]:
        features = {"images": Feature(self.size, "uint8", shape=(self.size, self.channels))}
        if self.fit == "pad":
            features["pixel_mask"] = Feature(self.size, "uint8", shape=(self.size,))
        return features

    def for_evaluation(self) -> "ImageField":
        return dataclasses.replace(self, augmentation=None)

    def read(self, example: Mapping[str, Any], path: str = "data.task.image.column") -> pictures.ImageLike:
        image = columns.value(example, self.column, path)
        if isinstance(image, str):
            columns.check_text(image, f"column {self.column!r}")
        return image

    def encode(self, value: pictures.ImageLike, tokenizer: Tokenizer | None = None) -> Picture | None:
        try:
            picture = self.decode(value, pictures.name_of(value, "an image of the source"))
        except pictures.Undecodable as error:
            if self.strict:
                raise FieldError("data.task.image.strict", f"=True: {error}") from error
            pictures.skip(str(error))
            return None
        return Picture(picture, picture.width * picture.height * self.channels // 4 + 1)

    def transform(
        self, encoded: Picture, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform]:
        image, geometry = self.view(encoded.picture, visit.rng)
        arrays = {"images": image}
        if self.fit == "pad":
            arrays["pixel_mask"] = self.mask(geometry)
        return arrays, geometry

    def request(self, example: Mapping[str, Any], folder: Path, path: str = "data.task.image.column") -> str:
        image = columns.value(example, self.column, path)
        if isinstance(image, str | os.PathLike):
            return str(image)
        file = folder / EXAMPLE
        try:
            picture = self.decode(image, "the example")
        except pictures.Undecodable as error:
            raise InputError(str(error)) from error
        if not file.exists():  # The file may belong to the user.
            content = io.BytesIO()
            picture.save(content, "PNG")
            file.write_bytes(content.getvalue())
        return str(file)

    def decode(self, image: pictures.ImageLike, name: str) -> Image.Image:
        """Decodes an image and converts it to `channels` channels.

        Args:
          image: file path, file content as bytes, pixel array or Pillow image.
          name: name of the image for error messages.

        Raises:
          Undecodable: If the image cannot be read.
        """
        picture = pictures.read_picture(image, self.channels, name)
        if self.fit == "none" and min(picture.size) < self.size:
            size = f"{picture.width} × {picture.height} pixels"
            raise pictures.Undecodable(f"{name}: {size}: expected {self.size} × {self.size} or more with fit=none")
        return picture

    def view(self, picture: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, GeometricTransform]:
        """Resizes and crops a picture, at random if there is an augmentation.

        Returns the pixels, uint8 [size, size, channels], and the geometric transform that maps points of the picture to
        points of the result.
        """
        if self.augmentation is not None:
            image, geometry = self.augmentation(picture, self.size, self.resample, rng)
            return padded(image, self.size), geometry
        return self.fitted(picture)

    def fitted(self, picture: Image.Image) -> tuple[np.ndarray, GeometricTransform]:
        """Resizes a picture, and crops or pads it, without augmentation.

        Returns the pixels, uint8 [size, size, channels], and the geometric transform that maps points of the picture to
        points of the result. With `fit="pad"`, the width and height in the transform do not include the padding.
        """
        if self.fit == "pad":
            size = size_within(*picture.size, self.shortest or self.size, self.size)
            moved = resized_box((0, 0, *picture.size), *size)
            if size != picture.size:
                picture = picture.resize(size, Image.Resampling[self.resample.upper()])
            return padded(pixels(picture), self.size), moved
        square, moved = fitted(picture, self.size, self.edge, self.fit, self.resample)
        return pixels(square), moved

    def mask(self, geometry: GeometricTransform) -> np.ndarray:
        """Returns a mask, uint8 [size, size], that is 1 for pixels of an image and 0 for padding.

        `geometry` is the transform that `fitted` returned for the image, which gives the size without padding.
        """
        mask = np.zeros((self.size, self.size), np.uint8)
        mask[: geometry.height, : geometry.width] = 1
        return mask

    def prepared(self, picture: Image.Image) -> np.ndarray:
        """Resizes and crops a picture without augmentation. Returns the pixels, uint8 [size, size, channels]."""
        return self.fitted(picture)[0]

    def prepare(self, images: Sequence[pictures.ImageLike]) -> list[Prepared]:
        """Decodes, resizes and crops images without augmentation, as in evaluation. Images can be file paths or in
        memory.

        Raises InputError if an image cannot be decoded.
        """
        found = []
        for number, image in enumerate(images, 1):
            name = pictures.name_of(image, f"image {number}")
            try:
                found.append(Prepared(name, self.prepared(self.decode(image, name))))
            except pictures.Undecodable as error:
                raise InputError(str(error)) from error
        return found
