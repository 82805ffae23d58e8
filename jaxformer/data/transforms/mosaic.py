"""Mosaic: combines four images, with their boxes or masks, in one training image (Bochkovskiy et al. 2020, YOLOv4)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

COUNT = 4
"""Number of images in a mosaic."""
CENTER = (0.3, 0.7)
"""Minimum and maximum coordinates of the point in which the images meet, as fractions of the size of the mosaic."""
VISIBLE = 0.25
"""Minimum share of the area of a box that must be visible. Otherwise, its object is left out."""


@dataclasses.dataclass(frozen=True)
class Quarter:
    """Part of a mosaic that shows one of the images. All values are in pixels."""

    left: int
    """Left edge in the mosaic."""
    upper: int
    """Upper edge in the mosaic."""
    right: int
    """Right edge in the mosaic."""
    lower: int
    """Lower edge in the mosaic."""
    x: int
    """Column of the mosaic in which the first column of the image would be."""
    y: int
    """Row of the mosaic in which the first row of the image would be."""


def quarters(sizes: Sequence[tuple[int, int]], size: int, rng: np.random.Generator) -> list[Quarter]:
    """Chooses a random point in which the corners of four images meet: the first image is above it to its left, the
    second above to its right, and the others below.

    Args:
      sizes: width and height of each image.
      size: height and width of the mosaic. Images must not be larger.
      rng: random generator.
    """
    center_x, center_y = (int(rng.integers(round(CENTER[0] * size), round(CENTER[1] * size) + 1)) for _ in range(2))
    found = []
    for number, (width, height) in enumerate(sizes):
        left, right, x = _side(center_x, width, size, bool(number % 2))
        upper, lower, y = _side(center_y, height, size, number >= 2)
        found.append(Quarter(left, upper, right, lower, x, y))
    return found


def _side(center: int, length: int, size: int, after: bool) -> tuple[int, int, int]:
    """Returns first edge, last edge and offset of an image along one axis. `after` is whether it is after the center or
    before it.
    """
    if after:
        return center, min(size, center + length), center
    return max(0, center - length), center, center - length


def combined(images: Sequence[np.ndarray], places: Sequence[Quarter], fill: int = 0) -> np.ndarray:
    """Combines four images, or masks, of the same shape [size, size, ...] in one of this shape. Pixels that no image
    covers are `fill`.
    """
    whole = np.full_like(images[0], fill)
    for image, at in zip(images, places, strict=True):
        part = image[at.upper - at.y : at.lower - at.y, at.left - at.x : at.right - at.x]
        whole[at.upper : at.lower, at.left : at.right] = part
    return whole


def moved_boxes(boxes: np.ndarray, at: Quarter) -> tuple[np.ndarray, np.ndarray]:
    """Moves boxes with their image, and clips them to its part of the mosaic.

    Args:
      boxes: left, upper, right and lower edges in pixels of the image, [boxes, 4].
      at: place of the image.

    Returns:
      Boxes in pixels of the mosaic, [boxes, 4], and whether enough of each is visible, bool [boxes].
    """
    moved = boxes + np.array([at.x, at.y, at.x, at.y])
    clipped = np.clip(moved, [at.left, at.upper] * 2, [at.right, at.lower] * 2)
    whole, left = ((one[:, 2:] - one[:, :2]).prod(1) for one in (moved, clipped))
    return clipped, (left > 0) & (left >= VISIBLE * whole)
