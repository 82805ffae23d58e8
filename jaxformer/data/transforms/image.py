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
"""Pillow filters for resizing. All except `nearest` average over the area that each pixel of a smaller image covers."""
Fit = Literal["crop", "stretch", "pad", "none"]
"""How a picture becomes a square. `crop` resizes its shorter side, `stretch` resizes both sides, and `none` does not
resize; a center crop follows. `pad` keeps its aspect ratio and fills the square with black pixels."""
LONGEST = 32
"""Maximum ratio of the longer to the shorter side before resizing. Images with a higher ratio are cropped, which bounds
memory use.
"""
STRONGEST = 10
"""Maximum of `Augmentation.magnitude`, the strength of RandAugment operations."""
_DEGREES = 30
"""Maximum angle of RandAugment rotations, in degrees."""

_MATRICES: Mapping[str, Callable[[float, int, int], Matrix]] = {
    "shear_x": lambda level, width, height: (1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda level, width, height: (1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda level, width, height: (1, 0, 0.3 * level * width, 0, 1, 0),
    "translate_y": lambda level, width, height: (1, 0, 0, 0, 1, 0.3 * level * height),
}
"""Maps the names of affine RandAugment operations to functions (level, width, height) that return their matrix. The
matrix maps points of the result to points of the image.
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
"""Maps the names of RandAugment operations to functions of a picture and a level. The level is the strength from 0 to
1, with a sign that sets the direction. Each function returns the new picture.
"""


def operation_geometry(name: str, level: float, width: int, height: int) -> GeometricTransform:
    """Returns the geometric transform of a RandAugment operation on a picture of this size. `level` is its signed
    strength, from -1 to 1.
    """
    if name == "rotate":
        return geometry.rotation(_DEGREES * level, width, height)
    if name in _MATRICES:
        return geometry.affine(_MATRICES[name](level, width, height), width, height)
    return geometry.identity(width, height)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random resized crop and flip (Szegedy et al. 2015), and RandAugment (Cubuk et al. 2020)."""

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
    """RandAugment operations to draw from."""

    fills_square: ClassVar[bool] = True
    """Whether the result is a square without padding."""

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
        """Applies a random crop, random operations and a random flip to a picture.

        Args:
          picture: image to augment.
          size: height and width of the result in pixels.
          resample: interpolation filter for resizing.
          rng: random generator.

        Returns:
          Pixels, uint8 [size, size, channels], and the geometric transform from the picture to them.
        """
        box = random_box(picture.width, picture.height, self.scale, self.ratio, rng)
        picture = resized(picture, size, box, resample)
        moved = geometry.resized_box(box, size, size)
        picture, moved = operated(picture, moved, self, rng)
        image = pixels(picture)
        if rng.random() < self.flip:
            return image[:, ::-1], moved.then(geometry.flip(size, size))
        return image, moved


class RandAugment(Protocol):
    """Settings of RandAugment (Cubuk et al. 2020): how many operations are drawn, how strong they are, and from which
    they are drawn.
    """

    @property
    def operations(self) -> int: ...
    @property
    def magnitude(self) -> float: ...
    @property
    def among(self) -> tuple[str, ...]: ...


def check_operations(path: str, settings: RandAugment) -> None:
    """Raises FieldError if a setting of RandAugment is out of range or names an operation that does not exist. `path`
    is the path of the settings.
    """
    fields.at_least(f"{path}.operations", settings.operations, 0)
    fields.within(f"{path}.magnitude", settings.magnitude, 0, STRONGEST)
    if unknown := [name for name in settings.among if name not in OPERATIONS]:
        problem = f"={shown(settings.among)}: no operation {unknown[0]!r}; expected some of {', '.join(OPERATIONS)}"
        raise FieldError(f"{path}.among", problem)


def operated(
    picture: Image.Image, moved: GeometricTransform, settings: RandAugment, rng: np.random.Generator
) -> tuple[Image.Image, GeometricTransform]:
    """Draws RandAugment operations and applies them to a picture, each in a random direction.

    Args:
      picture: picture that may already be transformed.
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
    """Returns a box of random area and aspect ratio at a random position.

    If ten draws do not fit in the image, returns the largest centered box with the closest allowed aspect ratio.
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
    """Crops a box of the picture and resizes it to a square of `size` pixels."""
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return picture
    return picture.resize((size, size), Image.Resampling[resample.upper()], box, reducing_gap=3.0)


def fitted(
    picture: Image.Image, size: int, edge: int, fit: Fit, resample: Resample
) -> tuple[Image.Image, GeometricTransform]:
    """Resizes a picture and crops its center. The pixels equal those of image processors of the transformers library.

    Args:
      picture: picture of any size. With `fit="none"`, at least as large as the result.
      size: height and width of the result in pixels.
      edge: length in pixels of the shorter side after resizing, or of both sides with `fit="stretch"`.
      fit: how the picture is resized.
      resample: interpolation filter for resizing.

    Returns:
      The square picture, and the geometric transform from the picture to it.
    """
    width, height = picture.size
    moved = geometry.identity(width, height)
    if fit == "stretch":
        width, height = edge, edge
    elif fit == "crop":
        short = min(width, height)
        if max(width, height) > LONGEST * short:
            cut = middle(width, height, min(width, LONGEST * short), min(height, LONGEST * short))
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
    """Computes the size to which a picture is resized so that its shorter side has `shortest` pixels.

    If the longer side would then exceed `longest` pixels, it has `longest` pixels instead. Rounds like the image
    processor of DETR in the transformers library. Returns the new width and height.
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
    """Pads pixels [height, width, channels] with black pixels at the right and at the bottom, to `size` × `size`."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, size - height), (0, size - width), (0, 0)))


def pixels(picture: Image.Image) -> np.ndarray:
    """Converts a picture to an array, uint8 [height, width, channels]."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Blends two images. The first image has weight `share` (Mixup; Zhang et al. 2018)."""
    mixed = share * image.astype(np.float32) + (1 - share) * other.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


def cutmix(image: np.ndarray, other: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Pastes a box of another image into an image, or into all frames of a clip (CutMix; Yun et al. 2019).

    Args:
      image: pixels, [height, width, channels] or [frames, height, width, channels].
      other: pixels of the other image, of the same shape.
      share: target share of the area that the first image keeps.
      rng: random generator for the position of the box. The box is clipped at the image edges.

    Returns:
      The mixed image, and the actual area share of the first image.
    """
    height, width = image.shape[-3:-1]
    side = math.sqrt(1 - share)
    column, row = rng.uniform(0, width), rng.uniform(0, height)
    left, right = (int(np.clip(column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    upper, lower = (int(np.clip(row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    mixed = image.copy()
    mixed[..., upper:lower, left:right, :] = other[..., upper:lower, left:right, :]
    return mixed, 1 - (lower - upper) * (right - left) / (height * width)
