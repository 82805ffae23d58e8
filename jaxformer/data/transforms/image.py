"""Random image augmentation with Pillow.

Pictures are Pillow images. Pixels are NumPy arrays, uint8 [height, width, channels]. All randomness comes from the
random generator that is passed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxformer import fields
from jaxformer.data.transforms import geometry
from jaxformer.data.transforms.geometry import Box, GeometricTransform, Matrix
from jaxformer.errors import FieldError, shown

Resample = Literal["bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"]
"""Interpolation filters for resizing, as named in Pillow. When an image is made smaller, all except `nearest` average
over the area that each new pixel covers.
"""
Fit = Literal["crop", "stretch", "pad", "none"]
"""Method of making a picture square. `crop` resizes the shorter side and keeps the aspect ratio, `stretch` resizes both
sides, and `none` does not resize; then the center is cropped. `pad` keeps the aspect ratio and pads with black pixels.
"""
MAX_ASPECT_RATIO = 32
"""Maximum ratio of the longer to the shorter side of an image before resizing. An image with a higher ratio is cropped
to it, which limits memory use.
"""
STRONGEST = 10
"""Maximum value of `Augmentation.magnitude`, the strength of RandAugment operations."""
_DEGREES = 30
"""Maximum angle of RandAugment rotations, in degrees."""

_MATRICES: Mapping[str, Callable[[float, int, int], Matrix]] = {
    "shear_x": lambda level, width, height: (1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda level, width, height: (1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda level, width, height: (1, 0, 0.3 * level * width, 0, 1, 0),
    "translate_y": lambda level, width, height: (1, 0, 0, 0, 1, 0.3 * level * height),
}
"""Maps names of affine RandAugment operations to functions of (level, width, height) that return an affine matrix. As
in Pillow, the matrix maps points of the result to points of the original image.
"""


def _affine(name: str) -> Callable[[Image.Image, float], Image.Image]:
    def operation(picture: Image.Image, level: float) -> Image.Image:
        matrix = _MATRICES[name](level, picture.width, picture.height)
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix)

    return operation


def _enhanced(enhance: Callable) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, level: enhance(picture).enhance(1 + 0.9 * level)


OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, level: picture,
    "auto_contrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "rotate": lambda picture, level: picture.rotate(_DEGREES * level),
    "shear_x": _affine("shear_x"),
    "shear_y": _affine("shear_y"),
    "translate_x": _affine("translate_x"),
    "translate_y": _affine("translate_y"),
    "posterize": lambda picture, level: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
    "solarize": lambda picture, level: ImageOps.solarize(picture, round(256 * (1 - abs(level)))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
}
"""Maps names of RandAugment operations to functions (picture, level) that return the new picture. The level is from -1
to 1: its absolute value is the strength, and its sign the direction, such as left or right.
"""


def operation_geometry(name: str, level: float, width: int, height: int) -> GeometricTransform:
    """Returns the geometric transform of the RandAugment operation `name` on a picture of this size. Operations that
    only change colors have the identity.

    `level` is from -1 to 1: its absolute value is the strength, and its sign the direction.
    """
    if name == "rotate":
        return geometry.rotation(_DEGREES * level, width, height)
    if name in _MATRICES:
        return geometry.affine(_MATRICES[name](level, width, height), width, height)
    return geometry.identity(width, height)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random image augmentation: a resized crop and a flip (Szegedy et al. 2015), and RandAugment operations (Cubuk et
    al. 2020).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum share of the image area that the crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Minimum and maximum aspect ratio (width / height) of the crop."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    operations: int = 0
    """Number of RandAugment operations to apply to each image."""
    magnitude: float = 9.0
    """Strength of the RandAugment operations, from 0 to 10."""
    among: tuple[str, ...] = tuple(OPERATIONS)
    """Names of the RandAugment operations to choose from at random."""

    fills_square: ClassVar[bool] = True
    """Whether the augmented image is a complete square. If False, it may be smaller and must be padded."""

    def __post_init__(self):
        path = "data.task.image.augmentation"
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise FieldError(f"{path}.scale", f"={self.scale}: expected two shares in order, above 0, at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise FieldError(f"{path}.ratio", f"={self.ratio}: expected two ratios in order, above 0")
        fields.within(f"{path}.flip", self.flip, 0, 1)
        check_operations(path, self)

    def __call__(
        self, picture: Image.Image, size: int, resample: Resample, rng: np.random.Generator
    ) -> tuple[np.ndarray, GeometricTransform]:
        """Applies a random crop, random RandAugment operations and a random flip to a picture.

        Args:
          picture: image to augment.
          size: height and width of the result in pixels.
          resample: interpolation filter for resizing.
          rng: random generator.

        Returns:
          Pixels of the result, uint8 [size, size, channels], and the geometric transform from `picture` to the result.
        """
        box = random_box(picture.width, picture.height, self.scale, self.ratio, rng)
        picture = resized(picture, size, box, resample)
        moved = geometry.resized_box(box, size, size)
        picture, moved = apply_rand_augment(picture, moved, self, rng)
        image = pixels(picture)
        if rng.random() < self.flip:
            return image[:, ::-1], moved.then(geometry.flip(size, size))
        return image, moved


class RandAugment(Protocol):
    """Protocol of RandAugment settings (Cubuk et al. 2020): the number of operations per image, their strength from 0
    to 10, and the names of the operations to choose from.
    """

    @property
    def operations(self) -> int: ...
    @property
    def magnitude(self) -> float: ...
    @property
    def among(self) -> tuple[str, ...]: ...


def check_operations(path: str, settings: RandAugment) -> None:
    """Raises FieldError if a RandAugment setting is out of range, or if it names an operation that does not exist.
    `path` is the config path of the settings, for the message.
    """
    fields.at_least(f"{path}.operations", settings.operations, 0)
    fields.within(f"{path}.magnitude", settings.magnitude, 0, STRONGEST)
    if unknown := [name for name in settings.among if name not in OPERATIONS]:
        problem = f"={shown(settings.among)}: no operation {unknown[0]!r}; expected some of {', '.join(OPERATIONS)}"
        raise FieldError(f"{path}.among", problem)


def apply_rand_augment(
    picture: Image.Image, moved: GeometricTransform, settings: RandAugment, rng: np.random.Generator
) -> tuple[Image.Image, GeometricTransform]:
    """Chooses RandAugment operations at random and applies them to a picture, each in a random direction.

    Args:
      picture: picture to change. It may already be cropped and resized.
      moved: geometric transform from the original picture to `picture`.
      settings: settings of RandAugment.
      rng: random generator.

    Returns:
      The new picture, and the geometric transform from the original picture to it.
    """
    level = settings.magnitude / STRONGEST
    drawn = rng.choice(len(settings.among), settings.operations) if settings.operations else ()
    for name in [settings.among[index] for index in drawn]:
        signed = level if rng.random() < 0.5 else -level
        picture = OPERATIONS[name](picture, signed)
        moved = moved.then(operation_geometry(name, signed, *picture.size))
    return picture, moved


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Returns a random crop box in an image of size `width` × `height`.

    Args:
      width: width of the image in pixels.
      height: height of the image in pixels.
      scale: minimum and maximum share of the image area that the box covers.
      ratio: minimum and maximum aspect ratio (width / height) of the box.
      rng: random generator.

    Returns:
      The box. If ten random boxes do not fit in the image, the largest centered box with the aspect ratio closest to
      that of the image.
    """
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
    """Returns the centered box of size `wide` × `high` in an image of size `width` × `height`."""
    left, upper = (width - wide) / 2, (height - high) / 2
    return (left, upper, left + wide, upper + high)


def resized(picture: Image.Image, size: int, box: Box, resample: Resample) -> Image.Image:
    """Crops `box` from a picture and resizes it to `size` × `size` pixels."""
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return picture
    return picture.resize((size, size), Image.Resampling[resample.upper()], box, reducing_gap=3.0)


def fitted(
    picture: Image.Image, size: int, edge: int, fit: Fit, resample: Resample
) -> tuple[Image.Image, GeometricTransform]:
    """Resizes a picture and crops its center. The pixels equal those of the image processors of the transformers
    library.

    Args:
      picture: picture of any size. If `fit` is `none`, it must be at least as large as the result.
      size: height and width of the result in pixels.
      edge: length in pixels of the shorter side after resizing, or of both sides if `fit` is `stretch`.
      fit: method of resizing.
      resample: interpolation filter for resizing.

    Returns:
      The square picture, and the geometric transform from `picture` to it.
    """
    width, height = picture.size
    moved = geometry.identity(width, height)
    if fit == "stretch":
        width, height = edge, edge
    elif fit == "crop":
        short = min(width, height)
        if max(width, height) > MAX_ASPECT_RATIO * short:
            cut = middle(width, height, min(width, MAX_ASPECT_RATIO * short), min(height, MAX_ASPECT_RATIO * short))
            box = int(cut[0]), int(cut[1]), int(cut[2]), int(cut[3])
            picture = picture.crop(box)
            width, height = picture.size
            moved = geometry.resized_box(box, width, height)
        width, height = int(edge * width / short), int(edge * height / short)
    if (width, height) != picture.size:
        moved = moved.then(geometry.resized_box((0, 0, *picture.size), width, height))
        picture = picture.resize((width, height), Image.Resampling[resample.upper()])
    left, upper = (width - size) // 2, (height - size) // 2
    box = (left, upper, left + size, upper + size)
    return picture.crop(box), moved.then(geometry.resized_box(box, size, size))


def size_within(width: int, height: int, shortest: int, longest: int) -> tuple[int, int]:
    """Computes the size of a resized picture whose aspect ratio is kept and whose shorter side has `shortest` pixels.

    If its longer side would exceed `longest` pixels, the longer side has `longest` pixels instead. Rounds as the image
    processor of DETR in the transformers library.

    Returns:
      New width and height in pixels.
    """
    low, high = min(width, height), max(width, height)
    exact = float(shortest)
    if high / low * shortest > longest:
        exact = longest * low / high
        shortest = max(1, round(exact))
    if low == shortest:
        return width, height
    other = max(1, int(exact * high / low))
    return (shortest, other) if width < height else (other, shortest)


def padded(image: np.ndarray, size: int) -> np.ndarray:
    """Pads an image [height, width, channels] with black pixels at the right and at the bottom, to `size` × `size`
    pixels.
    """
    height, width = image.shape[:2]
    return np.pad(image, ((0, size - height), (0, size - width), (0, 0)))


def pixels(picture: Image.Image) -> np.ndarray:
    """Converts a picture to an array, uint8 [height, width, channels]."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Returns share * `image` + (1 - share) * `other`, rounded to uint8 (Mixup; Zhang et al. 2018)."""
    mixed = share * image.astype(np.float32) + (1 - share) * other.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


def cutmix(image: np.ndarray, other: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Replaces a random box of an image, or of all frames of a clip, by the same box of another image (CutMix; Yun et
    al. 2019).

    Args:
      image: pixels, [height, width, channels] or [frames, height, width, channels].
      other: pixels of the other image, of the same shape.
      share: share of the area of `image` to keep. More is kept if the box extends beyond the image.
      rng: random generator for the center of the box.

    Returns:
      The mixed image, and the actual share of the area that is kept from `image`.
    """
    height, width = image.shape[-3:-1]
    side = math.sqrt(1 - share)
    column, row = rng.uniform(0, width), rng.uniform(0, height)
    left, right = (int(np.clip(column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    upper, lower = (int(np.clip(row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    mixed = image.copy()
    mixed[..., upper:lower, left:right, :] = other[..., upper:lower, left:right, :]
    return mixed, 1 - (lower - upper) * (right - left) / (height * width)
