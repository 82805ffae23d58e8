"""Attention masks that are stored as a few integers per token. Boolean matrices [queries, keys] are created only for
the block of queries and keys that is being computed.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

OF_QUERIES = ("query_segments", "query_order", "query_index")
OF_KEYS = ("key_segments", "key_order", "key_index")


@flax.struct.dataclass
class Mask:
    """Attention mask: determines which keys each query attends to.

    A query attends to a key if all of these are true: both are in the same segment (for example, the same document),
    the order number of the key is at most that of the query, and the distance between them is within the window. In a
    causal mask, the order number of a token is its index.
    """

    query_segments: jax.Array | None = None
    """Segment number of each query, integers [batch, length]. Queries attend only to keys of the same segment:
    documents that are packed into one batch row have different numbers, and padding has 0. If None, all tokens are in
    one segment.
    """
    key_segments: jax.Array | None = None
    """Segment number of each key, integers [batch, keys]. Queries attend only to keys of the same segment. None if
    `query_segments` is None.
    """
    query_order: jax.Array | None = None
    """Order number of each query, integers [batch or 1, length]. A query attends only to keys with at most this order
    number. If None, a query attends to every key of its segment.
    """
    key_order: jax.Array | None = None
    """Order number of each key, integers [batch or 1, keys]. A query attends only to keys whose order number is at most
    its own. None if `query_order` is None.
    """
    query_index: jax.Array | None = None
    """Index of each query in its sequence, integers [batch or 1, length], to compute its distance from keys. Only
    needed if `window` is set.
    """
    key_index: jax.Array | None = None
    """Index of each key in its sequence, integers [batch or 1, keys], to compute its distance from queries. Only needed
    if `window` is set.
    """
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    """Window size: a query attends only to keys fewer than this number of positions away. If None, the distance is not
    limited.
    """
    in_order: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether every query i attends only to keys 0 to i. The attention implementation then skips later keys."""
    aligned: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether query i and key i have the same index i in the sequence. The attention implementation then skips keys
    outside the window.
    """

    @classmethod
    def of_segments(cls, query_segments: jax.Array, key_segments: jax.Array) -> Self:
        """Creates a mask in which each query attends to all keys of its segment. Both arguments are segment numbers,
        integers [batch, length], 0 for padding.
        """
        return cls(query_segments, key_segments)

    @classmethod
    def causal(cls, length: int, segments: jax.Array | None = None) -> Self:
        """Creates a causal mask: each of `length` tokens attends to itself and to earlier tokens of its segment.
        `segments` are segment numbers, integers [batch, length]. If None, all tokens are in one segment.
        """
        order = jnp.arange(length)[None]
        return cls(segments, segments, order, order, in_order=True)

    @classmethod
    def prefix(cls, in_prefix: jax.Array, segments: jax.Array | None = None) -> Self:
        """Creates a prefix mask (Raffel et al. 2020, §3.2.1).

        The mask is causal, except that all tokens of a segment attend to its whole prefix.

        Args:
          in_prefix: whether each token is in the prefix of its segment, boolean [batch, length].
          segments: segment number of each token, integers [batch, length]. If None, all tokens are in one segment.
        """
        order = jnp.where(in_prefix, 0, jnp.arange(in_prefix.shape[1]) + 1)
        return cls(segments, segments, order, order)

    def windowed(self, window: int, length: int) -> Self:
        """Returns this mask with the additional condition that queries attend only to keys fewer than `window`
        positions away, for self-attention over `length` tokens (Beltagy et al. 2020, §3.1).
        """
        index = jnp.arange(length)[None]
        return dataclasses.replace(self, query_index=index, key_index=index, window=window, aligned=True)

    def at(self, positions: jax.Array) -> Self:
        """Returns the mask for a selection of the queries: those at `positions`, integers [batch, predictions]. The
        keys do not change.
        """

        def take(array):
            if array is None:
                return None
            return jnp.take_along_axis(jnp.broadcast_to(array, (positions.shape[0], array.shape[1])), positions, axis=1)

        return self.with_queries({name: take(getattr(self, name)) for name in OF_QUERIES})

    def part(self, queries: slice, keys: slice) -> Self:
        """Returns the mask for attention of one slice of the queries to one slice of the keys."""

        def cut(array, some):
            return None if array is None else array[:, some]

        some = self.with_queries({name: cut(getattr(self, name), queries) for name in OF_QUERIES})
        return dataclasses.replace(some, **{name: cut(getattr(self, name), keys) for name in OF_KEYS})

    def with_queries(self, arrays: dict[str, jax.Array | None]) -> Self:
        """Returns a copy of this mask for other queries. `arrays` maps `query_segments`, `query_order` and
        `query_index` to their new values.
        """
        return dataclasses.replace(self, **arrays, in_order=False, aligned=False)

    def dense(self) -> jax.Array | None:
        """Converts the mask to a boolean array [batch or 1, 1, queries, keys], True if a query attends to a key.
        Returns None if all queries attend to all keys.
        """
        parts = []
        if self.query_segments is not None:
            parts.append(_pairwise(operator.eq, self.query_segments, self.key_segments))
        if self.query_order is not None:
            parts.append(_pairwise(operator.ge, self.query_order, self.key_order))
        if self.window is not None:
            parts.append(jnp.abs(_pairwise(operator.sub, self.query_index, self.key_index)) < self.window)
        return functools.reduce(operator.and_, parts) if parts else None


def _pairwise(function: Callable[[Any, Any], jax.Array], of_queries: Any, of_keys: Any) -> jax.Array:
    """Applies a function to one integer per query and one per key, for each pair of a query and a key. Returns [batch
    or 1, 1, queries, keys].

    Args:
      function: elementwise function of two broadcastable arrays, such as `operator.eq`.
      of_queries: integer of each query, [batch or 1, queries].
      of_keys: integer of each key, [batch or 1, keys].
    """
    return function(of_queries[:, None, :, None], of_keys[:, None, None, :])


@flax.struct.dataclass
class Tokens:
    """Marks which positions of a layer's input contain tokens and which contain padding, for layers that treat them
    differently, such as mixtures of experts.
    """

    segments: jax.Array | None = None
    """Segment number of each position of the batch rows, integers [batch, row length]. 0 for padding. If None, all
    positions contain tokens.
    """
    at: jax.Array | None = None
    """Indices of the positions that the layer computes, if it does not compute all positions of the batch rows,
    integers [batch, length]. If None, it computes all.
    """

    @property
    def real(self) -> jax.Array | None:
        """Whether each position that the layer computes contains a token, boolean [batch, length]. None if all of them
        do.
        """
        if self.segments is None:
            return None
        real = self.segments != 0
        return real if self.at is None else jnp.take_along_axis(real, self.at, axis=1)

    def counted(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the weight of each position that the layer computes, float32 [batch, length] (`shape`): 1 for tokens,
        0 for padding and for repetitions of a position.

        Positions repeat in masked language modeling: if a batch row has fewer masked tokens than the maximum, the list
        `at` is filled up with the first position of the row.
        """
        counted, real = jnp.ones(shape, jnp.float32), self.real
        if real is not None:
            counted *= real
        if self.at is None:
            return counted
        index = jnp.arange(self.at.shape[1])
        repeated = jnp.any((self.at[:, :, None] == self.at[:, None, :]) & (index[:, None] > index[None]), axis=-1)
        return counted * ~repeated
