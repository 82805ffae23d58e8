"""Position encodings: some are added to embeddings, and others change attention.

Position schemes that change attention are modules. `Transformer` calls its position scheme once per forward pass. The
result is a `Placement`, such as rotations of queries and keys, which the self-attention of every block applies.
"""

import math
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.parallel import metadata, sharding


def sinusoidal(position_ids: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Computes sinusoidal position encodings (Vaswani et al. 2017, §3.5).

    The first half of each vector contains sines, the second half cosines, as in Marian checkpoints. (The paper
    interleaves them.)

    Args:
      position_ids: positions, integers [...].
      width: size of the encoding, an even number.
      longest: base of the frequencies: sine i and cosine i have an angle of longest^(-2i / width) radians per position.

    Returns:
      Position encodings, float32 [..., width].
    """
    if width % 2:
        raise ValueError(f"width {width} is odd: sines and cosines take half each")
    # An angle of many turns loses precision in float32. If a turn has 2^32 units, integer overflow removes whole turns.
    turn = 2.0**32 / (2 * math.pi)
    frequencies = np.round(turn * longest ** (-np.arange(0, width, 2) / width)).astype(np.int32)
    angles = (position_ids[..., None].astype(jnp.int32) * frequencies).astype(jnp.float32) / turn
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@flax.struct.dataclass
class Placement:
    """Position information that an attention layer applies: rotations of queries and keys, vectors to add to its
    inputs, or a bias of the scores. Fields that are None have no effect.
    """

    query: tuple[jax.Array, jax.Array] | None = None
    """Cosines and sines by which queries are rotated (rotary embeddings), float32 [batch, length, 1, head_dim / 2]
    each. None if queries are not rotated.
    """
    key: tuple[jax.Array, jax.Array] | None = None
    """Cosines and sines by which keys are rotated (rotary embeddings), float32 [batch, length, 1, head_dim / 2] each.
    None if keys are not rotated.
    """
    bias: jax.Array | None = None
    """Bias to add to the attention scores, float32 [heads, queries, keys] or [batch, heads, queries, keys]. None for no
    bias.
    """
    query_added: jax.Array | None = None
    """Position embeddings to add to the layer's input before it is projected to queries, as in DETR (Carion et al.
    2020), [batch or 1, length, embed]. If None, nothing is added.
    """
    key_added: jax.Array | None = None
    """Position embeddings to add to the vectors that are projected to keys, but not to those for values, as in DETR
    (Carion et al. 2020), [batch or 1, keys, embed]. If None, nothing is added.
    """
    relative_keys: jax.Array | None = None
    """Vectors that are added to each key, for all heads, depending on the query (Shaw et al. 2018), float32 [queries,
    keys, head_dim] or [batch or 1, queries, keys, head_dim]. If None, nothing is added.
    """

    def merged(self, other: "Placement") -> "Placement":
        """Combines two placements: each field is that of `other`, or of `self` where `other` has None."""
        return Placement(**{name: _first(getattr(other, name), getattr(self, name)) for name in _FIELDS})

    def at(self, position_ids: jax.Array) -> "Placement":
        """Returns the placement for a selection of the queries: those at the indices `position_ids`, integers [batch,
        predictions]. The fields for keys do not change.
        """
        query, bias, added = self.query, self.bias, self.query_added
        if added is not None:
            rows = jnp.broadcast_to(added, (position_ids.shape[0], *added.shape[1:]))
            added = jnp.take_along_axis(rows, position_ids[..., None], axis=1)
        if query is not None:
            query = _at(query[0], position_ids), _at(query[1], position_ids)
        if bias is not None:
            bias = jnp.moveaxis(bias[:, position_ids], 1, 0)
        relative = None if self.relative_keys is None else self.relative_keys[position_ids]
        return Placement(query, self.key, bias, added, self.key_added, relative)


def _at(array: jax.Array, position_ids: jax.Array) -> jax.Array:
    """Selects the rotations (cosines or sines) at some indices.

    Args:
      array: cosines or sines, [batch or 1, length, 1, head_dim / 2].
      position_ids: indices to select along the axis `length`, integers [batch, predictions].

    Returns:
      Selected values, [batch, predictions, 1, head_dim / 2].
    """
    rows = jnp.broadcast_to(array, (position_ids.shape[0], *array.shape[1:]))
    return jnp.take_along_axis(rows, position_ids[..., None, None], axis=1)


_FIELDS = ("query", "key", "bias", "query_added", "key_added", "relative_keys")


def _first(value, otherwise):
    return otherwise if value is None else value


Scaling = Literal["none", "linear", "llama3"]
"""Method of scaling rotary position embeddings, so that a model can be used with longer inputs than in pretraining. See
`Rotary.scaling`.
"""


class Rotary(nn.Module):
    """Rotary position embeddings (Su et al. 2021).

    Rotates pairs of dimensions of queries and keys by angles that are proportional to the position. As in LLaMA,
    dimension i is paired with dimension i + head_dim / 2.
    """

    base: float = 10_000.0
    """Base of the rotation angles: pair i of dimensions rotates by base^(-2i / head_dim) radians per position."""
    scaling: Scaling = "none"
    """How to scale rotation angles for inputs that are longer than in pretraining. `linear` divides all angles by
    `factor` (Chen et al. 2023). `llama3` divides only the angles of slowly rotating pairs, as in LLaMA 3.1.
    """
    factor: float = 8.0
    """Number by which rotation angles are divided. Only used if `scaling` is not `none`."""
    pretrained: int = 8192
    """Maximum input length in pretraining, in tokens. Only used by the scaling `llama3`."""
    low: float = 1.0
    """Only used by the scaling `llama3`: if a pair of dimensions makes fewer full rotations than this over the
    pretrained length, its angle is divided by `factor`.
    """
    high: float = 4.0
    """Only used by the scaling `llama3`: if a pair of dimensions makes more full rotations than this over the
    pretrained length, its angle is not scaled. Between `low` and `high`, the scaling is interpolated.
    """

    def __post_init__(self):
        super().__post_init__()
        for field in ("base", "factor", "pretrained", "low"):
            if not getattr(self, field) > 0:
                raise InputError(f"positions.{field}={getattr(self, field)}: expected above 0")
        if not self.high > self.low:
            raise InputError(f"positions.high={self.high}: expected above positions.low={self.low}")

    def frequencies(self, head_dim: int) -> jax.Array:
        """Returns the rotation angle in radians per position for each pair of dimensions, after scaling, float32
        [head_dim / 2].
        """
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
        """Computes the rotations of queries and keys. Returns a `Placement`.

        Args:
          position_ids: position of each token, integers [batch, length].
          query_index: not used.
          key_index: not used.
          heads: not used.
          head_dim: size of a head, an even number.
        """
        if head_dim % 2:
            raise InputError(f"a head of {head_dim} dimensions: rotary positions need an even number")
        angles = position_ids[..., None, None].astype(jnp.float32) * self.frequencies(head_dim)
        rotation = jnp.cos(angles), jnp.sin(angles)
        return Placement(rotation, rotation)


def rotate(x_bthk: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotary position embeddings to queries or keys. Returns an array of the same shape.

    Args:
      x_bthk: queries or keys, [batch, length, heads, head_dim].
      rotation: cosines and sines of the rotation angles, [batch, length, 1, head_dim / 2] each.
    """
    cosines, sines = rotation
    first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return rotated.astype(x_bthk.dtype)


class RelativePositions(nn.Module):
    """Relative position biases, as in T5: adds a learned number to each attention score, which depends on the head and
    on the distance between query and key (Raffel et al. 2020, §2.1). Distances are grouped into buckets that share a
    bias.
    """

    buckets: int = 32
    """Number of buckets that distances are grouped into. Half of the buckets contain one distance each, and the others
    contain increasingly wide ranges.
    """
    longest: int = 128
    """All distances of at least this number of tokens share the last bucket (`relative_attention_max_distance` in T5).
    """
    bidirectional: bool = True
    """Whether keys before and after the query have separate buckets, half of them each. If False, all buckets are for
    earlier keys, as in causal attention.
    """

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
        """Computes the bias of the attention scores. Returns a `Placement` with a bias [heads, queries, keys].

        Args:
          position_ids: not used.
          query_index: index of each query in the sequence, integers [queries].
          key_index: index of each key in the sequence, integers [keys].
          heads: number of heads.
          head_dim: not used.
        """
        init = metadata.with_axes(nn.initializers.normal(0.1), "_h")
        table = self.param("bias", init, (self.buckets, heads))
        bucket = self.bucket(key_index[None, :] - query_index[:, None])
        return Placement(bias=sharding.constrain(jnp.moveaxis(table[bucket], -1, 0), "hts"))

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Returns the index of the bucket that each distance (key index minus query index) belongs to, as an integer
        array of the same shape.
        """
        buckets, first = self.buckets, 0
        if self.bidirectional:
            buckets //= 2
            first, distance = buckets * (distance > 0), jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        # With this order of operations, float32 rounds to the same side of each border as the original implementation.
        growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(self.longest / exact)
        wide = exact + (growth * (buckets - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(wide, buckets - 1))


class RelativeKeys(nn.Module):
    """Relative position vectors that are added to keys (Shaw et al. 2018, §3.2), as in SpeechT5: a learned vector for
    each distance between query and key, which all heads and all blocks share.
    """

    longest: int = 160
    """Distances from this number on share a vector, separately for keys before and after the query."""

    def __post_init__(self):
        super().__post_init__()
        if self.longest < 1:
            raise InputError(f"positions.longest={self.longest}: expected at least 1")

    @nn.compact
    def __call__(
        self, position_ids: jax.Array, query_index: jax.Array, key_index: jax.Array, heads: int, head_dim: int
    ):
        """Selects the vector of each pair of a query and a key. Returns a `Placement` with vectors [queries, keys,
        head_dim].

        Args:
          position_ids: not used.
          query_index: index of each query in the sequence, integers [queries].
          key_index: index of each key in the sequence, integers [keys].
          heads: not used.
          head_dim: size of the vectors.
        """
        init = metadata.with_axes(nn.initializers.normal(0.02), "_k")
        table = self.param("keys", init, (2 * self.longest, head_dim))
        distance = query_index[:, None] - key_index[None, :]
        return Placement(relative_keys=table[jnp.clip(distance, -self.longest, self.longest - 1) + self.longest])
