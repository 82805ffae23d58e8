"""Bilinear resizing of maps of vectors, as in PyTorch without aligned corners."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def bilinear(old: int, new: int) -> np.ndarray:
    """Computes the matrix [new, old] that resamples a line of `old` values to `new` values by linear interpolation.
    The ends are repeated, and downsampling does not smooth.
    """
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.minimum(place.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), first), 1 - (place - first))
    np.add.at(matrix, (np.arange(new), np.minimum(first + 1, old - 1)), place - first)
    return matrix


def resized(maps: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes maps [batch, rows, columns, channels] to another number of rows and columns."""
    rows, columns = size
    if maps.shape[1:3] == (rows, columns):
        return maps
    vertical, horizontal = bilinear(maps.shape[1], rows), bilinear(maps.shape[2], columns)
    return jnp.einsum("ry,cx,byxn->brcn", vertical.astype(maps.dtype), horizontal.astype(maps.dtype), maps)
