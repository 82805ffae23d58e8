"""Overlap of bounding boxes: intersection over union, and its generalization to boxes that do not overlap."""

import jax
import jax.numpy as jnp


def corners(boxes: jax.Array) -> jax.Array:
    """Converts boxes [..., 4] from (center x, center y, width, height) to (left, upper, right, lower) edges."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def generalized_iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Computes the generalized intersection over union of pairs of boxes (Rezatofighi et al. 2019).

    Args:
      boxes: left, upper, right and lower edges, [..., 4].
      others: boxes of a shape that can be broadcast with `boxes`.

    Returns:
      A number from -1 to 1 for each pair, [...]. 1 if the two boxes are equal.
    """
    shared = _area(jnp.maximum(boxes[..., :2], others[..., :2]), jnp.minimum(boxes[..., 2:], others[..., 2:]))
    areas = _area(boxes[..., :2], boxes[..., 2:]) + _area(others[..., :2], others[..., 2:])
    union = areas - shared
    around = _area(jnp.minimum(boxes[..., :2], others[..., :2]), jnp.maximum(boxes[..., 2:], others[..., 2:]))
    return _ratio(shared, union) - _ratio(around - union, around)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Divides the area `part` by the area `whole`, element by element. The result is 0 where `whole` is 0."""
    return jnp.where(whole > 0, part, 0) / jnp.where(whole > 0, whole, 1)
