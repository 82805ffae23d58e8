"""Losses that draw the two vectors of a pair together and those of different pairs apart.

All pairs of a global batch are compared, whichever devices hold their rows.
"""

import jax
import jax.numpy as jnp

from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.means import Mean


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., d] with length 1; zeros, which have no direction, stay zeros and have a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, -1, keepdims=True), 1e-24))


def info_nce(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """Cross-entropy (nats) and accuracy of finding the second part of each pair (van den Oord et al. 2018).

    Args:
      scores: float [n, n], of the first part of a row with the second part of a column; pairs are on the diagonal.
      weights: float32 [n]: 0 for rows and columns without a pair.
    """
    scores = jnp.where(weights > 0, scores, jnp.finfo(jnp.float32).min)
    return class_cross_entropy(scores, jnp.arange(len(weights)), weights)


def softmax_contrastive(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """The mean of `info_nce` in both directions, and of its accuracy (Radford et al. 2021).

    Args:
      scores: as in `info_nce`, divided by the temperature.
      weights: as in `info_nce`.
    """
    (loss, accuracy), (other_loss, other_accuracy) = info_nce(scores, weights), info_nce(scores.T, weights)
    return _halved(loss, other_loss), _halved(accuracy, other_accuracy)


def sigmoid_contrastive(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """The loss that classifies each combination as a pair or none (Zhai et al. 2023), and the accuracy of `info_nce`.

    Args:
      scores: as in `info_nce`, multiplied by the scale, with the bias added.
      weights: as in `info_nce`.

    Returns:
      The sum over all n² combinations of the negative log-probability (nats), divided by the number of pairs.
    """
    scores = scores.astype(jnp.float32)
    sign = 2.0 * jnp.eye(len(weights)) - 1.0
    losses = -jax.nn.log_sigmoid(sign * scores) * weights[None]
    (_, accuracy), (_, other_accuracy) = info_nce(scores, weights), info_nce(scores.T, weights)
    return Mean.of(losses.sum(1), weights), _halved(accuracy, other_accuracy)


def _halved(one: Mean, other: Mean) -> Mean:
    return Mean((one.sum + other.sum) / 2, one.weight)
