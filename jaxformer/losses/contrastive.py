"""Contrastive losses for pairs, such as images and their texts. Each element of a pair is compared with the elements of
all pairs in the global batch.
"""

import jax
import jax.numpy as jnp

from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.means import Mean


def unit(vectors: jax.Array) -> jax.Array:
    """Normalizes vectors [..., embed] to length 1. Zero vectors stay zero and have a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, -1, keepdims=True), 1e-24))


def info_nce(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """Computes the InfoNCE loss (van den Oord et al. 2018): the cross-entropy of finding the matching column for each
    row.

    Args:
      scores: similarity of the first element of each pair (rows) with the second element of each pair (columns), float
        [pairs, pairs]. Matching elements are on the diagonal.
      weights: weight of each pair, float32 [pairs]; 0 for padding.

    Returns:
      The loss in nats, and the accuracy: the share of rows whose highest score is on the diagonal. Both are weighted
      means.
    """
    scores = jnp.where(weights > 0, scores, jnp.finfo(jnp.float32).min)
    return class_cross_entropy(scores, jnp.arange(len(weights)), weights)


def softmax_contrastive(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """Computes the loss of CLIP (Radford et al. 2021): the mean of `info_nce` from rows to columns and from columns to
    rows.

    Returns the loss in nats and the accuracy, each averaged over both directions.

    Args:
      scores: similarities divided by the temperature, float [pairs, pairs]. Matching elements are on the diagonal.
      weights: weight of each pair, float32 [pairs]; 0 for padding.
    """
    (loss, accuracy), (other_loss, other_accuracy) = info_nce(scores, weights), info_nce(scores.T, weights)
    return _halved(loss, other_loss), _halved(accuracy, other_accuracy)


def sigmoid_contrastive(scores: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """Computes the pairwise sigmoid loss (SigLIP, Zhai et al. 2023), which classifies each entry of `scores` as
    matching or not.

    Args:
      scores: similarities, multiplied by the learned scale, plus the learned bias, float [pairs, pairs]. Matching
        elements are on the diagonal.
      weights: weight of each pair, float32 [pairs]; 0 for padding.

    Returns:
      The negative log-likelihood (nats), summed over all entries of `scores` and divided by the number of pairs, and
      the same accuracy as that of `softmax_contrastive`.
    """
    scores = scores.astype(jnp.float32)
    sign = 2.0 * jnp.eye(len(weights)) - 1.0
    losses = -jax.nn.log_sigmoid(sign * scores) * weights[None]
    (_, accuracy), (_, other_accuracy) = info_nce(scores, weights), info_nce(scores.T, weights)
    return Mean.of(losses.sum(1), weights), _halved(accuracy, other_accuracy)


def _halved(one: Mean, other: Mean) -> Mean:
    return Mean((one.sum + other.sum) / 2, one.weight)
