"""Sinusoidal position embeddings for the feature maps of padded images, as in DETR (Carion et al. 2020, §A.4)."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def shrunk_mask(pixel_mask: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes the padding mask of images to the size of their feature map. For each position of the feature map, it
    takes the mask of the nearest pixel above and to the left.

    Args:
      pixel_mask: 1 for pixels of the image, 0 for padding, [batch, image_height, image_width].
      height: height of the feature map.
      width: width of the feature map.

    Returns:
      Mask of the feature map, [batch, height, width].
    """
    rows, columns = (_nearest(*sizes) for sizes in zip(pixel_mask.shape[1:], (height, width), strict=True))
    return jnp.take(jnp.take(pixel_mask, rows, axis=1), columns, axis=2)


def _nearest(length: int, count: int) -> np.ndarray:
    """Returns the indices that nearest-neighbor interpolation selects when it resizes an axis from `length` to `count`
    positions, integers [count]. Rounds as PyTorch does.
    """
    if length % count == 0:
        return np.arange(0, length, length // count)
    # Sizes are divided in float32, like PyTorch does when it interpolates.
    return np.floor(np.arange(count, dtype=np.float32) * np.float32(length / count)).astype(int)


def masked_positions(mask: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Computes sinusoidal position embeddings for the feature maps of padded images. Within each image, without its
    padding, rows and columns are numbered from 1, and the numbers are scaled so that the last one is 2π.

    Args:
      mask: 1 for positions of the image, 0 for padding, [batch, rows, columns].
      width: size of the embeddings. The first half encodes the row, the second half the column; sines and cosines
        alternate.
      longest: ratio of the longest to the shortest wavelength.

    Returns:
      Position embeddings, float32 [batch, rows · columns, width].
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4: sines and cosines of rows and columns take a quarter")
    counted = mask.astype(jnp.float32)

    def encoded(axis: int) -> jax.Array:
        index = jnp.cumsum(counted, axis)
        return _sinusoids(index / (jax.lax.slice_in_dim(index, -1, None, axis=axis) + 1e-6), width // 2, longest)

    positions = jnp.concatenate([encoded(1), encoded(2)], axis=-1)
    return positions.reshape(mask.shape[0], -1, width)


def point_positions(points: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Computes sinusoidal position embeddings of points in an image, which are comparable to those of
    `masked_positions`.

    Args:
      points: x and y as fractions of the image, [..., 2].
      width: size of the embeddings, a multiple of 4.
      longest: ratio of the longest to the shortest wavelength.

    Returns:
      Position embeddings, float32 [..., width].
    """
    x, y = points[..., 0], points[..., 1]
    return jnp.concatenate([_sinusoids(y, width // 2, longest), _sinusoids(x, width // 2, longest)], axis=-1)


def _sinusoids(places: jax.Array, width: int, longest: float) -> jax.Array:
    """Returns alternating sines and cosines of places between 0 and 1, [..., width]. 1 corresponds to an angle of 2π at
    the shortest wavelength.
    """
    wavelengths = longest ** (2 * (np.arange(width) // 2) / width).astype(np.float32)
    angles = (places * (2 * math.pi))[..., None] / wavelengths
    pairs = jnp.concatenate([jnp.sin(angles[..., 0::2, None]), jnp.cos(angles[..., 1::2, None])], axis=-1)
    return pairs.reshape(*angles.shape)
