"""Boolean attention masks, [b, 1, t, s], True where a query may look."""

import jax


def segment_mask(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """Each query sees the keys of its own segment: documents packed in a row do not meet, padding (0) stays apart.

    Args:
      query_segments: integers [b, t].
      key_segments: integers [b, s].
    """
    return query_segments[:, None, :, None] == key_segments[:, None, None, :]


def causal_mask(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """Each query sees the keys at its own position and before.

    Args:
      query_positions: integers [b, t].
      key_positions: integers [b, s].
    """
    return query_positions[:, None, :, None] >= key_positions[:, None, None, :]
