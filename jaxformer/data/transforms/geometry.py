"""Where the points of an image are after it was cropped, resized, flipped, rotated or sheared.

Coordinates are in pixels, x to the right and y downwards, from the upper left corner of the image: the pixel in column
i and row j covers the square from (i, j) to (i + 1, j + 1).
"""

import dataclasses
import math

import numpy as np

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""
Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the point (x, y) becomes (a x + b y + c, d x + e y + f)."""


@dataclasses.dataclass(frozen=True)
class GeometricTransform:
    """An affine transform of an image: where its points are afterwards, and the size of the result."""

    matrix: Matrix
    """Maps points of the image to points of the result."""
    width: int
    """Columns of the result."""
    height: int
    """Rows of the result."""

    def then(self, other: "GeometricTransform") -> "GeometricTransform":
        """This transform followed by another one of its result."""
        product = _square(other.matrix) @ _square(self.matrix)
        return GeometricTransform(_flat(product), other.width, other.height)


def identity(width: int, height: int) -> GeometricTransform:
    """The transform of an image that is left as it is."""
    return GeometricTransform((1, 0, 0, 0, 1, 0), width, height)


def resized_box(box: Box, width: int, height: int) -> GeometricTransform:
    """A box of an image, resized to a width and height; a crop if the box has that size."""
    left, upper, right, lower = box
    x, y = width / (right - left), height / (lower - upper)
    return GeometricTransform((x, 0, -left * x, 0, y, -upper * y), width, height)


def flip(width: int, height: int) -> GeometricTransform:
    """A mirror image, left to right."""
    return GeometricTransform((-1, 0, width, 0, 1, 0), width, height)


def affine(matrix: Matrix, width: int, height: int) -> GeometricTransform:
    """An image of the same size, transformed as Pillow does it: `matrix` maps points of the result to the image."""
    return GeometricTransform(_flat(np.linalg.inv(_square(matrix))), width, height)


def rotation(degrees: float, width: int, height: int) -> GeometricTransform:
    """An image rotated counter-clockwise about its centre, its size unchanged."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return GeometricTransform((cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), width, height)


def points_after(points: np.ndarray, transform: GeometricTransform) -> np.ndarray:
    """Points (x, y) after a transform.

    Args:
      points: [n, 2].
      transform: of the image that they are in.

    Returns:
      float32 [n, 2]; points may be outside of the result.
    """
    a, b, c, d, e, f = transform.matrix
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1).astype(np.float32)


def boxes_after(boxes: np.ndarray, transform: GeometricTransform) -> tuple[np.ndarray, np.ndarray]:
    """Boxes after a transform: the smallest upright boxes around theirs, clipped to the result.

    Args:
      boxes: [n, 4], as `Box`.
      transform: of the image that they are in.

    Returns:
      Boxes, float32 [n, 4], and which of them have an area inside of the result, bool [n].
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    corners = points_after(corners, transform).reshape(-1, 4, 2)
    limits = np.array([transform.width, transform.height], np.float32)
    low, high = (np.clip(edge, 0, limits) for edge in (corners.min(axis=1), corners.max(axis=1)))
    return np.concatenate([low, high], axis=1), (high > low).all(axis=1)


def mask_after(mask: np.ndarray, transform: GeometricTransform, fill: int = 0) -> np.ndarray:
    """A mask after a transform: each pixel has the value of the nearest pixel of the mask.

    Args:
      mask: [height, width] of the image.
      transform: of the image.
      fill: value outside of the image.

    Returns:
      [transform.height, transform.width] of the same type.
    """
    a, b, c, d, e, f = _flat(np.linalg.inv(_square(transform.matrix)))
    x, y = np.arange(transform.width) + 0.5, (np.arange(transform.height) + 0.5)[:, None]
    column, row = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
    inside = (column >= 0) & (column < mask.shape[1]) & (row >= 0) & (row < mask.shape[0])
    return np.where(inside, mask[np.where(inside, row, 0), np.where(inside, column, 0)], mask.dtype.type(fill))


def _square(matrix: Matrix) -> np.ndarray:
    return np.array([matrix[:3], matrix[3:], (0, 0, 1)], np.float64)


def _flat(square: np.ndarray) -> Matrix:
    a, b, c, d, e, f = map(float, square[:2].ravel())
    return a, b, c, d, e, f
