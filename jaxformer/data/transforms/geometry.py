"""Geometric transforms: where points of an image move when the image is cropped, resized, flipped, rotated or sheared.

Coordinates are in pixels from the upper left corner of the image, x to the right and y downwards. The pixel in column i
and row j covers the square from (i, j) to (i + 1, j + 1).
"""

import dataclasses
import math

import numpy as np

Box = tuple[float, float, float, float]
"""Box in an image: left, upper, right and lower edge, in pixels."""
Matrix = tuple[float, float, float, float, float, float]
"""Affine matrix (a, b, c, d, e, f). It maps the point (x, y) to (a x + b y + c, d x + e y + f)."""


@dataclasses.dataclass(frozen=True)
class GeometricTransform:
    """Affine transform of an image: a matrix that maps points of the image to points of the transformed image, and the
    size of the transformed image.
    """

    matrix: Matrix
    """Affine matrix that maps points of the image to points of the transformed image, in pixels."""
    width: int
    """Width of the transformed image in pixels."""
    height: int
    """Height of the transformed image in pixels."""

    def then(self, other: "GeometricTransform") -> "GeometricTransform":
        """Returns the transform that applies this transform first, and `other` to its result."""
        product = _square(other.matrix) @ _square(self.matrix)
        return GeometricTransform(_flat(product), other.width, other.height)


def identity(width: int, height: int) -> GeometricTransform:
    """Returns the identity transform of an image of the given size."""
    return GeometricTransform((1, 0, 0, 0, 1, 0), width, height)


def resized_box(box: Box, width: int, height: int) -> GeometricTransform:
    """Returns the transform that crops a box and resizes it to `width` × `height` pixels."""
    left, upper, right, lower = box
    x, y = width / (right - left), height / (lower - upper)
    return GeometricTransform((x, 0, -left * x, 0, y, -upper * y), width, height)


def flip(width: int, height: int) -> GeometricTransform:
    """Returns the transform that mirrors an image from left to right."""
    return GeometricTransform((-1, 0, width, 0, 1, 0), width, height)


def affine(matrix: Matrix, width: int, height: int) -> GeometricTransform:
    """Returns the transform that corresponds to Pillow's `Image.transform` with an affine matrix, for a result of the
    same size.

    Args:
      matrix: Pillow's matrix, which maps points of the result to points of the original image.
      width: width of the image in pixels.
      height: height of the image in pixels.
    """
    return GeometricTransform(_flat(np.linalg.inv(_square(matrix))), width, height)


def rotation(degrees: float, width: int, height: int) -> GeometricTransform:
    """Returns the transform that rotates an image counter-clockwise about its center. The result has the same size."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return GeometricTransform((cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), width, height)


def points_after(points: np.ndarray, transform: GeometricTransform) -> np.ndarray:
    """Applies a transform to points (x, y).

    Args:
      points: points in the image, [points, 2].
      transform: transform of the image.

    Returns:
      Transformed points, float32 [points, 2]. They may be outside the transformed image.
    """
    a, b, c, d, e, f = transform.matrix
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1).astype(np.float32)


def boxes_after(boxes: np.ndarray, transform: GeometricTransform) -> tuple[np.ndarray, np.ndarray]:
    """Applies a transform to boxes. Returns for each the smallest axis-aligned box around the transformed box, clipped
    to the transformed image.

    Args:
      boxes: boxes (left, upper, right, lower) in the image, [boxes, 4].
      transform: transform of the image.

    Returns:
      Transformed boxes, float32 [boxes, 4], and whether each has a positive area inside the transformed image, bool
      [boxes].
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    corners = points_after(corners, transform).reshape(-1, 4, 2)
    limits = np.array([transform.width, transform.height], np.float32)
    low, high = (np.clip(edge, 0, limits) for edge in (corners.min(axis=1), corners.max(axis=1)))
    return np.concatenate([low, high], axis=1), (high > low).all(axis=1)


def mask_after(mask: np.ndarray, transform: GeometricTransform, fill: int = 0) -> np.ndarray:
    """Applies a transform to a mask of an image, such as a segmentation. Each pixel of the result has the value of the
    nearest pixel of the mask.

    Args:
      mask: mask of the image, [height, width].
      transform: transform of the image.
      fill: value of the pixels of the result that are outside the original image.

    Returns:
      Transformed mask of the same data type, [transform.height, transform.width].
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
