"""Attention masks stored as per-token integers; dense blocks are built on demand."""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

OF_QUERIES = ("query_segments", "query_order", "query_index")
OF_KEYS = ("key_segments", "key_order", "key_index")


@flax.struct.dataclass
class Mask:
    """A query sees the keys of its own segment whose order is not above its own, within the window."""

    query_segments: jax.Array | None = None
    """Integers [b, t]; documents packed in a row have different ones, padding has 0. None: one segment."""
    key_segments: jax.Array | None = None
    """Integers [b, s]."""
    query_order: jax.Array | None = None
    """Integers [b, t] or [1, t]. None: every key of the segment is seen."""
    key_order: jax.Array | None = None
    """Integers [b, s] or [1, s]."""
    query_index: jax.Array | None = None
    """Integers [b, t] or [1, t], the index of each query in its row, where there is a window."""
    key_index: jax.Array | None = None
    """Integers [b, s] or [1, s]."""
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    """A query sees keys whose index differs from its own by less than this; None: any."""
    in_order: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether query i sees no key after the i-th, so that attention need not compute those."""
    aligned: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether the index of query i and of key i is i, so that attention need not compute keys outside of the window."""

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

    def windowed(self, window: int, length: int) -> Self:
        """The mask of self-attention over `length` tokens with a window (Beltagy et al. 2020, §3.1)."""
        index = jnp.arange(length)[None]
        return self.replace(query_index=index, key_index=index, window=window, aligned=True)

    def at(self, positions: jax.Array) -> Self:
        """The mask of the queries at `positions`, integers [b, m], alone."""

        def take(array):
            if array is None:
                return None
            return jnp.take_along_axis(jnp.broadcast_to(array, (positions.shape[0], array.shape[1])), positions, axis=1)

        return self.with_queries({name: take(getattr(self, name)) for name in OF_QUERIES})

    def part(self, queries: slice, keys: slice) -> Self:
        """The mask of some queries and keys."""

        def cut(array, some):
            return None if array is None else array[:, some]

        some = self.with_queries({name: cut(getattr(self, name), queries) for name in OF_QUERIES})
        return some.replace(**{name: cut(getattr(self, name), keys) for name in OF_KEYS})

    def with_queries(self, arrays: dict[str, jax.Array | None]) -> Self:
        """The mask of other queries, whose arrays are given by name."""
        return self.replace(**arrays, in_order=False, aligned=False)

    def dense(self) -> jax.Array | None:
        """Boolean [b or 1, 1, t, s], True where a query sees a key; None: everywhere."""
        seen = None
        if self.query_segments is not None:
            seen = self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if self.query_order is not None:
            before = self.query_order[:, None, :, None] >= self.key_order[:, None, None, :]
            seen = before if seen is None else seen & before
        if self.window is not None:
            near = jnp.abs(self.query_index[:, None, :, None] - self.key_index[:, None, None, :]) < self.window
            seen = near if seen is None else seen & near
        return seen
