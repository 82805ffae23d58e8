"""Which keys each query sees, told by a few integers a token: no matrix exists before a block of it is needed."""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mask:
    """A query sees the keys of its own segment whose order is not above its own."""

    query_segments: jax.Array | None = None
    """Integers [b, t]; documents packed in a row have different ones, padding has 0. None: one segment."""
    key_segments: jax.Array | None = None
    """Integers [b, s]."""
    query_order: jax.Array | None = None
    """Integers [b, t] or [1, t]. None: every key of the segment is seen."""
    key_order: jax.Array | None = None
    """Integers [b, s] or [1, s]."""
    in_order: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether query i sees its segment's keys up to the i-th, so that attention need not compute what is behind."""

    @classmethod
    def of_segments(cls, query_segments: jax.Array, key_segments: jax.Array) -> Self:
        """Every query sees all keys of its segment."""
        return cls(query_segments, key_segments)

    @classmethod
    def causal(cls, length: int, segments: jax.Array | None = None) -> Self:
        """Each of `length` tokens sees itself and those before it in its segment."""
        order = jnp.arange(length)[None]
        return cls(segments, segments, order, order, in_order=True)

    @classmethod
    def prefix(cls, in_prefix: jax.Array, segments: jax.Array | None = None) -> Self:
        """Causal, but the tokens of a segment's prefix see all of it (Raffel et al. 2020, §3.2.1).

        Args:
          in_prefix: boolean [b, t].
          segments: integers [b, t].
        """
        order = jnp.where(in_prefix, 0, jnp.arange(in_prefix.shape[1]) + 1)
        return cls(segments, segments, order, order)

    def at(self, positions: jax.Array) -> Self:
        """The mask of the queries at `positions`, integers [b, m], alone."""

        def take(array):
            if array is None:
                return None
            return jnp.take_along_axis(jnp.broadcast_to(array, (positions.shape[0], array.shape[1])), positions, axis=1)

        taken = {"query_segments": take(self.query_segments), "query_order": take(self.query_order)}
        return self.replace(**taken, in_order=False)

    def part(self, queries: slice, keys: slice) -> Self:
        """The mask of some queries and keys."""

        def cut(array, some):
            return None if array is None else array[:, some]

        of_queries = {name: cut(getattr(self, name), queries) for name in ("query_segments", "query_order")}
        of_keys = {name: cut(getattr(self, name), keys) for name in ("key_segments", "key_order")}
        return self.replace(**of_queries, **of_keys, in_order=False)

    def dense(self) -> jax.Array | None:
        """Boolean [b or 1, 1, t, s], True where a query sees a key; None: everywhere."""
        seen = None
        if self.query_segments is not None:
            seen = self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if self.query_order is not None:
            before = self.query_order[:, None, :, None] >= self.key_order[:, None, None, :]
            seen = before if seen is None else seen & before
        return seen
