"""Positions: encodings that are added to embeddings, and schemes that act in attention.

A scheme is a module that a `Transformer` is given. Called once for a whole stack, it returns a `Placement`, which every
block's self-attention applies.
"""

import math
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.parallel import metadata


def sinusoidal(position_ids: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Sines in the first half of the width, cosines in the second (Vaswani et al. 2017, §3.5).

    The paper interleaves the two; the halves are a fixed permutation of it, and the layout that Marian's
    checkpoints have.

    Args:
      position_ids: integers [...].
      width: even size of the encoding.
      longest: wavelength of the slowest pair, in units of 2π positions.

    Returns:
      float32 [..., width].
    """
    if width % 2:
        raise ValueError(f"width {width} is odd: sines and cosines take half each")
    # An angle of many turns has few digits left in float32. If a turn has 2^32 units, integers leave out whole
    # turns by themselves.
    turn = 2.0**32 / (2 * math.pi)
    frequencies = np.round(turn * longest ** (-np.arange(0, width, 2) / width)).astype(np.int32)
    angles = (position_ids[..., None].astype(jnp.int32) * frequencies).astype(jnp.float32) / turn
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@flax.struct.dataclass
class Placement:
    """The changes that a position scheme makes in self-attention."""

    query: tuple[jax.Array, jax.Array] | None = None
    """Cosines and sines, float32 [b, t, 1, k/2], by which queries are rotated."""
    key: tuple[jax.Array, jax.Array] | None = None
    """Cosines and sines by which keys are rotated."""
    bias: jax.Array | None = None
    """Added to the scores, float32 [h, t, s] or [b, h, t, s]."""
    query_added: jax.Array | None = None
    """Added to `x` before it becomes queries, [b or 1, t, d] (Carion et al. 2020)."""
    key_added: jax.Array | None = None
    """Added to `x` or the memory before it becomes keys, and not values, [b or 1, s, d]."""

    def merged(self, other: "Placement") -> "Placement":
        """Both together; of what both do, `other`'s."""
        return Placement(**{name: _first(getattr(other, name), getattr(self, name)) for name in _FIELDS})

    def at(self, position_ids: jax.Array) -> "Placement":
        """The placement of only the queries at `position_ids`, integers [b, m]."""
        query, bias, added = self.query, self.bias, self.query_added
        if added is not None:
            rows = jnp.broadcast_to(added, (position_ids.shape[0], *added.shape[1:]))
            added = jnp.take_along_axis(rows, position_ids[..., None], axis=1)
        if query is not None:
            rows = [jnp.broadcast_to(array, (position_ids.shape[0], *array.shape[1:])) for array in query]
            query = tuple(jnp.take_along_axis(array, position_ids[..., None, None], axis=1) for array in rows)
        if bias is not None:
            bias = jnp.moveaxis(bias[:, position_ids], 1, 0)
        return Placement(query, self.key, bias, added, self.key_added)


_FIELDS = ("query", "key", "bias", "query_added", "key_added")


def _first(value, otherwise):
    return otherwise if value is None else value


class Rotary(nn.Module):
    """Rotates pairs of a query's and a key's dimensions by angles in proportion to their positions (Su et al. 2021).

    A pair is a dimension of the first half and the one in the same place of the second, as in LLaMA.
    """

    base: float = 10_000.0
    """Wavelength of the slowest pair, in units of 2π positions."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How positions beyond the pretrained length are brought within it: not at all; all angles by `factor` (Chen et
    al. 2023); or the slow pairs alone, as LLaMA 3.1 does."""
    factor: float = 8.0
    """By how much angles shrink, with a scaling."""
    pretrained: int = 8192
    """Positions before the scaling (llama3)."""
    low: float = 1.0
    """Pairs with fewer turns than this within the `pretrained` positions shrink by `factor` (llama3)."""
    high: float = 4.0
    """Pairs with more turns than this stay (llama3)."""

    def __post_init__(self):
        super().__post_init__()
        for field in ("base", "factor", "pretrained", "low"):
            if not getattr(self, field) > 0:
                raise InputError(f"positions.{field}={getattr(self, field)}: expected above 0")
        if not self.high > self.low:
            raise InputError(f"positions.high={self.high}: expected above positions.low={self.low}")

    def frequencies(self, head_dim: int) -> jax.Array:
        """Radians a position of each pair, float32 [k/2]."""
        frequencies = self.base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            turns = self.pretrained * frequencies / (2 * math.pi)
            kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
            return frequencies * (kept + (1 - kept) / self.factor)
        return frequencies

    def __call__(
        self, position_ids: jax.Array, query_index: jax.Array, key_index: jax.Array, heads: int, head_dim: int
    ):
        """The rotation of positions, integers [b, t]; `query_index`, `key_index` and `heads` do not matter to it."""
        if head_dim % 2:
            raise InputError(f"a head of {head_dim} dimensions: rotary positions need an even number")
        angles = position_ids[..., None, None].astype(jnp.float32) * self.frequencies(head_dim)
        rotation = jnp.cos(angles), jnp.sin(angles)
        return Placement(rotation, rotation)


def rotate(x_bthk: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Queries or keys, rotated."""
    cosines, sines = rotation
    first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return rotated.astype(x_bthk.dtype)


class RelativePositions(nn.Module):
    """A learned bias for each head and each bucket of distances from query to key (Raffel et al. 2020, §2.1)."""

    buckets: int = 32
    """Half of them for single distances, the others ever wider."""
    longest: int = 128
    """From this distance on all are in one bucket."""
    bidirectional: bool = True
    """Whether half of the buckets are for keys after the query; False if it does not see them."""

    def __post_init__(self):
        super().__post_init__()
        least = 4 if self.bidirectional else 2
        if self.buckets < least or self.buckets % 2:
            raise InputError(f"positions.buckets={self.buckets}: expected an even number, at least {least}")
        if self.longest <= self.buckets // least:
            raise InputError(f"positions.longest={self.longest}: expected above {self.buckets // least}")

    @nn.compact
    def __call__(
        self, position_ids: jax.Array, query_index: jax.Array, key_index: jax.Array, heads: int, head_dim: int
    ):
        """The bias between indices in a row, integers [t] and [s]; `position_ids` and `head_dim` are not used."""
        init = metadata.with_axes(nn.initializers.normal(0.1), "_h")
        table = self.param("bias", init, (self.buckets, heads))
        bucket = self.bucket(key_index[None, :] - query_index[:, None])
        return Placement(bias=jnp.moveaxis(table[bucket], -1, 0))

    def bucket(self, distance: jax.Array) -> jax.Array:
        """The bucket of each distance, key minus query, any shape."""
        buckets, first = self.buckets, 0
        if self.bidirectional:
            buckets //= 2
            first, distance = buckets * (distance > 0), jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        # In this order of operations, float32 falls on the same side of each border as the original.
        growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(self.longest / exact)
        wide = exact + (growth * (buckets - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(wide, buckets - 1))
