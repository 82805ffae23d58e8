"""Bilinear resizing of feature maps, with the same result as PyTorch's `interpolate` with `align_corners=False`."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def bilinear(old: int, new: int) -> np.ndarray:
    """Computes the matrix [new, old] that resamples `old` equally spaced values to `new` values by linear
    interpolation. Values beyond the ends equal the end values, and there is no antialiasing.
    """
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.minimum(place.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), first), 1 - (place - first))
    np.add.at(matrix, (np.arange(new), np.minimum(first + 1, old - 1)), place - first)
    return matrix


def resized(maps: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes feature maps [batch, rows, columns, channels] to `size` (rows, columns) by bilinear interpolation."""
    rows, columns = size
    if maps.shape[1:3] == (rows, columns):
        return maps
    vertical, horizontal = bilinear(maps.shape[1], rows), bilinear(maps.shape[2], columns)
    return jnp.einsum("ry,cx,byxn->brcn", vertical.astype(maps.dtype), horizontal.astype(maps.dtype), maps)
