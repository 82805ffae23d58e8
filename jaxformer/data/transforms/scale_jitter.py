"""Random scale, crop and flip that keep the aspect ratio of a picture, for object detection."""

import dataclasses
from typing import ClassVar

import numpy as np
from PIL import Image

from jaxformer import fields
from jaxformer.data.transforms import geometry
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.image import Resample, apply_rand_augment, check_operations, pixels, size_within
from jaxformer.errors import FieldError

_PATH = "data.task.image.augmentation"


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """Random image augmentation for object detection: a crop, resizing that keeps the aspect ratio, a flip (Carion et
    al. 2020, §4), and RandAugment operations.

    The result fits in a square, to which the caller pads it.
    """

    shortest: tuple[int, int] = (480, 800)
    """Minimum and maximum length in pixels to which the shorter side is resized, drawn at random. Reduced if the longer
    side would exceed the image size.
    """
    crop: float = 0.5
    """Probability of a crop before resizing."""
    share: float = 0.5
    """Minimum share of the width, and of the height, that a crop keeps."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    operations: int = 0
    """Number of RandAugment operations to apply to each image."""
    magnitude: float = 5.0
    """Strength of the RandAugment operations, from 0 to 10."""
    among: tuple[str, ...] = ("identity", "auto_contrast", "color", "contrast", "brightness", "sharpness")
    """Names of the RandAugment operations to choose from at random. By default, those that do not move pixels."""

    fills_square: ClassVar[bool] = False
    """Whether the augmented image is a complete square. If False, it may be smaller and must be padded."""

    def __post_init__(self):
        if not 1 <= self.shortest[0] <= self.shortest[1]:
            raise FieldError(f"{_PATH}.shortest", f"={self.shortest}: expected two lengths in order, at least 1")
        if not 0 < self.share <= 1:
            raise FieldError(f"{_PATH}.share", f"={self.share}: expected above 0, at most 1")
        for name in ("crop", "flip"):
            fields.within(f"{_PATH}.{name}", getattr(self, name), 0, 1)
        check_operations(_PATH, self)

    def __call__(
        self, picture: Image.Image, size: int, resample: Resample, rng: np.random.Generator
    ) -> tuple[np.ndarray, GeometricTransform]:
        """Applies a random crop, random resizing, random RandAugment operations and a random flip to a picture.

        Args:
          picture: image to augment.
          size: maximum height and width of the result in pixels.
          resample: interpolation filter for resizing.
          rng: random generator.

        Returns:
          Pixels of the result, uint8 [height, width, channels], and the geometric transform from `picture` to the
          result.
        """
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        if rng.random() < self.crop:
            wide, high = (max(1.0, side * rng.uniform(self.share, 1)) for side in picture.size)
            left, upper = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - high)
            box = (left, upper, left + wide, upper + high)
        shortest = min(int(rng.integers(self.shortest[0], self.shortest[1] + 1)), size)
        width, height = size_within(max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1])), shortest, size)
        moved = geometry.resized_box(box, width, height)
        picture = picture.resize((width, height), Image.Resampling[resample.upper()], box, reducing_gap=3.0)
        picture, moved = apply_rand_augment(picture, moved, self, rng)
        image = pixels(picture)
        if rng.random() < self.flip:
            return image[:, ::-1], moved.then(geometry.flip(width, height))
        return image, moved
