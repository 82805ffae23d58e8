"""Losses of pretraining on speech: the contrast between the right quantized frame and others, and the diversity of the
codes (Baevski et al. 2020, §3.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.losses.contrastive import unit


class Contrast(NamedTuple):
    """Result of `contrast`."""

    losses: jax.Array
    """Cross-entropy of each frame in nats, float32 [batch, frames]."""
    right: jax.Array
    """Whether the right quantized frame has the highest similarity, boolean [batch, frames]."""


def contrast(
    predicted: jax.Array, quantized: jax.Array, codes: jax.Array, negatives: jax.Array, temperature: float
) -> Contrast:
    """Computes the cross-entropy of choosing the quantized frame among negative examples, by their cosine similarities
    with the predicted vector. A negative example with the same codes as the frame does not count.

    Args:
      predicted: predicted vectors, float32 [batch, frames, size].
      quantized: quantized frames, float32 [batch, frames, size].
      codes: codes of the quantized frames, integers [batch, frames, codebooks].
      negatives: indices of the negative examples of each frame, integers [batch, frames, negatives].
      temperature: number by which similarities are divided.
    """
    # The similarities of all pairs of frames of a row need less memory than the vectors of all negative examples.
    similarities = jnp.einsum("btd,bsd->bts", unit(predicted), unit(quantized)) / temperature
    right = jnp.diagonal(similarities, axis1=1, axis2=2)
    wrong = jnp.take_along_axis(similarities, negatives, axis=2)
    same = (jax.vmap(lambda codes, chosen: codes[chosen])(codes, negatives) == codes[:, :, None]).all(-1)
    wrong = jnp.where(same, -jnp.inf, wrong)
    total = jax.nn.logsumexp(jnp.concatenate([right[..., None], wrong], axis=-1), axis=-1)
    return Contrast(total - right, right >= wrong.max(-1))


def code_perplexity(probabilities: jax.Array, masked: jax.Array) -> jax.Array:
    """Computes the perplexity of the mean distribution over the entries of each codebook, float32 [codebooks].

    Args:
      probabilities: probability of each entry, float32 [batch, frames, codebooks, entries].
      masked: weight of each frame in the mean, [batch, frames].
    """
    weights = masked.astype(jnp.float32)
    mean = jnp.einsum("bt,btgv->gv", weights, probabilities) / jnp.maximum(1, weights.sum())
    return jnp.exp(-jax.scipy.special.xlogy(mean, mean).sum(-1))
