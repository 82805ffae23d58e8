"""Log-probabilities of whole sequences, computed without storing all logits at once."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer.layers.linear import LMHead
from jaxformer.losses.cross_entropy import num_chunks
from jaxformer.parallel import sharding


def sequence_log_probabilities(x: jax.Array, lm_head: LMHead, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Computes the log-probability of the targets of each row, in nats: the sum over its positions.

    The output layer is applied to chunks of positions. The backward pass computes the logits of each chunk again.

    Args:
      x: hidden vectors, [batch, length, embed].
      lm_head: output layer, which maps vectors to logits.
      targets: target token ids, integers [batch, length].
      weights: weight of each position, float32 [batch, length]; 0 for positions without a target.

    Returns:
      Weighted sums of log-probabilities, float32 [batch].
    """
    rows, length = targets.shape
    chunks = num_chunks(rows, length, len(lm_head.table))
    size = -(-length // chunks)

    @jax.checkpoint
    def of_chunk(x: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        logits = sharding.constrain(lm_head.logits(x), "btv").astype(jnp.float32)
        wanted = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum((wanted - jax.nn.logsumexp(logits, -1)) * weights, -1)

    if chunks == 1:
        return of_chunk(x, targets, weights)
    # The table is gathered once for all chunks.
    lm_head = dataclasses.replace(lm_head, table=sharding.constrain(lm_head.table, "v_"))

    def split(array: jax.Array) -> jax.Array:  # [b, t, ...] -> [chunk, b, size, ...]
        padding = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (array.ndim - 2)
        return jnp.moveaxis(jnp.pad(array, padding).reshape(rows, chunks, size, *array.shape[2:]), 1, 0)

    def body(total: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, targets, weights = chunk
        return total + of_chunk(x, targets, weights), None

    return jax.lax.scan(body, jnp.zeros(rows, jnp.float32), (split(x), split(targets), split(weights)))[0]
