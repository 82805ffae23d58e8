"""Images changed at random, so that a model sees few of them twice; Pillow does the work.

Pictures are Pillow's, pixels NumPy arrays, uint8 [height, width, channels]. All randomness comes from a generator that
is given.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxformer.errors import InputError

Resample = Literal["bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"]
"""Pillow's filters for resizing; all but nearest average over the area that a pixel of a smaller image covers."""
Fit = Literal["crop", "stretch", "none"]
"""How a picture becomes a square: by its shorter side, by both sides, or without resizing."""
LONGEST = 32
"""Ratio of a picture's sides above which its ends are cut off before it is resized, so that memory is bounded."""
STRONGEST = 10
"""The magnitude of RandAugment's strongest operations."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""


def _turned(picture: Image.Image, level: float) -> Image.Image:
    return picture.rotate(30 * level)


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


def _enhanced(enhance: Callable) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, level: enhance(picture).enhance(1 + 0.9 * level)


OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, level: picture,
    "auto_contrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "rotate": _turned,
    "shear_x": lambda picture, level: _affine(picture, 1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda picture, level: _affine(picture, 1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda picture, level: _affine(picture, 1, 0, 0.3 * level * picture.width, 0, 1, 0),
    "translate_y": lambda picture, level: _affine(picture, 1, 0, 0, 0, 1, 0.3 * level * picture.height),
    "posterize": lambda picture, level: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
    "solarize": lambda picture, level: ImageOps.solarize(picture, round(256 * (1 - abs(level)))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
}
"""The operations of RandAugment, each a function of a picture and a level from -1 to 1; the sign is a direction."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random part of the image, perhaps mirrored (Szegedy et al. 2015), and RandAugment (Cubuk et al. 2020)."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area that is seen."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest ratio of its width to its height."""
    flip: float = 0.5
    """Probability that the image is mirrored, left to right."""
    operations: int = 0
    """Operations of RandAugment on each image."""
    magnitude: float = 9.0
    """Their strength, from 0 to 10."""
    among: tuple[str, ...] = tuple(OPERATIONS)
    """The operations that are drawn from."""

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InputError(f"task.augmentation.scale {self.scale}: must be two shares, above 0 and up to 1, in order")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"task.augmentation.ratio {self.ratio}: must be two ratios above 0, in order")
        if not 0 <= self.flip <= 1:
            raise InputError(f"task.augmentation.flip {self.flip}: must be from 0 to 1")
        if self.operations < 0 or not 0 <= self.magnitude <= STRONGEST:
            raise InputError(
                f"task.augmentation: operations {self.operations} and magnitude {self.magnitude}; must be 0 or more, "
                f"and from 0 to {STRONGEST}"
            )
        if unknown := [name for name in self.among if name not in OPERATIONS]:
            raise InputError(f"task.augmentation.among: no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")

    def __call__(self, picture: Image.Image, size: int, resample: Resample, rng: np.random.Generator) -> np.ndarray:
        """A random part of the picture, changed at random: uint8 [size, size, channels]."""
        box = random_box(picture.width, picture.height, self.scale, self.ratio, rng)
        picture = resized(picture, size, box, resample)
        for name in rng.choice(len(self.among), self.operations) if self.operations else ():
            sign = 1 if rng.random() < 0.5 else -1
            picture = OPERATIONS[self.among[name]](picture, sign * self.magnitude / STRONGEST)
        image = pixels(picture)
        return image[:, ::-1] if rng.random() < self.flip else image


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box of a random area and shape somewhere in an image; the widest possible where ten draws do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, high = math.sqrt(area * shape), math.sqrt(area / shape)
        if wide <= width and high <= height:
            left, upper = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return (left, upper, left + wide, upper + high)
    shape = min(max(width / height, ratio[0]), ratio[1])
    return middle(width, height, min(width, height * shape), min(height, width / shape))


def middle(width: float, height: float, wide: float, high: float) -> Box:
    """The box of that size in the middle of an image."""
    left, upper = (width - wide) / 2, (height - high) / 2
    return (left, upper, left + wide, upper + high)


def resized(picture: Image.Image, size: int, box: Box, resample: Resample) -> Image.Image:
    """What is in a box of the picture, as a square of `size` pixels."""
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return picture
    return picture.resize((size, size), Image.Resampling[resample.upper()], box, reducing_gap=3.0)


def fitted(picture: Image.Image, size: int, edge: int, fit: Fit, resample: Resample) -> Image.Image:
    """The middle of a resized picture, as image processors of transformers compute it, to the pixel.

    Args:
        picture: of any size; with `fit="none"` at least that of the result.
        size: height and width of the result.
        edge: length of the shorter side after resizing, or of both with `fit="stretch"`.
        fit: how it is resized.
        resample: the filter.
    """
    width, height = picture.size
    if fit == "stretch":
        width, height = edge, edge
    elif fit == "crop":
        short = min(width, height)
        if max(width, height) > LONGEST * short:
            box = middle(width, height, min(width, LONGEST * short), min(height, LONGEST * short))
            picture = picture.crop(tuple(map(int, box)))
            width, height = picture.size
        width, height = int(edge * width / short), int(edge * height / short)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[resample.upper()])
    left, upper = (width - size) // 2, (height - size) // 2
    return picture.crop((left, upper, left + size, upper + size))


def pixels(picture: Image.Image) -> np.ndarray:
    """uint8 [height, width, channels]."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """`share` of one image and the rest of another, pixel by pixel (Zhang et al. 2018)."""
    mixed = share * image.astype(np.float32) + (1 - share) * other.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


def cutmix(image: np.ndarray, other: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """An image with a box of another in it (Yun et al. 2019), and the share of the first one that is seen after all.

    Args:
      image: [height, width, channels].
      other: of the same shape.
      share: how much of the first one is to be seen; the box is cut off where it would stand out.
      rng: says where the box is.
    """
    height, width = image.shape[:2]
    side = math.sqrt(1 - share)
    column, row = rng.uniform(0, width), rng.uniform(0, height)
    left, right = (int(np.clip(column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    upper, lower = (int(np.clip(row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    mixed = image.copy()
    mixed[upper:lower, left:right] = other[upper:lower, left:right]
    return mixed, 1 - (lower - upper) * (right - left) / (height * width)
