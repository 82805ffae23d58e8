"""Pooling: reduces the token vectors of each example to one vector."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxformer.layers.block import take

Pooling = Literal["pooler", "first", "mean", "max", "last", "first_and_mean", "none"]
"""Method of pooling token vectors to one vector per example: a trained layer on the first token (`pooler`, as in BERT),
the first token, the mean or the maximum of all tokens, the last token, or the first token concatenated with the mean.
`none` means no pooling, for predictions per token.
"""


def pool(hidden: jax.Array, pooling: Pooling, belongs: jax.Array) -> jax.Array:
    """Pools the token vectors of each example to one vector. Several examples may be packed into one batch row.

    Args:
      hidden: token vectors, [batch, length, embed].
      pooling: method of pooling: any except `pooler` and `none`, which the model itself handles.
      belongs: whether each token belongs to each of the examples in its batch row, boolean [batch, examples, length].

    Returns:
      Pooled vectors, [batch, examples, embed], computed in float32 and returned in the type of `hidden`. The vector of
      an example without tokens is finite but arbitrary.
    """
    if pooling == "first":
        return take(hidden, belongs.argmax(-1))
    if pooling == "last":
        index = jnp.arange(belongs.shape[2])
        return take(hidden, jnp.max(jnp.where(belongs, index, 0), -1))
    if pooling == "first_and_mean":
        return jnp.concatenate([pool(hidden, "first", belongs), pool(hidden, "mean", belongs)], -1)
    vectors = hidden.astype(jnp.float32)
    if pooling == "max":
        largest = jnp.max(jnp.where(belongs[..., None], vectors[:, None], -jnp.inf), 2)
        return jnp.where(belongs.any(-1)[..., None], largest, 0.0).astype(hidden.dtype)
    if pooling != "mean":
        raise ValueError(f"pooling={pooling}: expected first, mean, max, last or first_and_mean")
    share = belongs / jnp.maximum(belongs.sum(-1, keepdims=True), 1)
    return jnp.einsum("bct,btd->bcd", share, vectors).astype(hidden.dtype)


def segments_of(segments: jax.Array, count: int) -> jax.Array:
    """Returns whether each token belongs to each of the examples that are packed into its batch row, boolean [batch,
    examples, length].

    Args:
      segments: number of the example that each token belongs to, counted from 1, or 0 for padding, integers [batch,
        length].
      count: maximum number of examples per row.
    """
    return segments[:, None] == jnp.arange(1, count + 1)[:, None]
