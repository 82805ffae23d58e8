"""Scaled dot-product attention and the layer around it (Vaswani et al. 2017, §3.2)."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.export
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers import kernels
from jaxformer.layers.dropout import dropout
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.positions import Placement, rotate

BLOCK = 256
"""Queries whose scores exist at once, at most."""
CAUSAL_PARTS = 4
"""Parts of a row in which queries see no later key; more of them leave out more, and are slower each."""
SHORTEST_PART = 64


@flax.struct.dataclass
class KeyValue:
    """Keys and values of one layer; the axes as a product with queries wants them."""

    key: jax.Array
    """[b, g, s, k]."""
    value: jax.Array
    """[b, g, s, k]."""


def attention_weights(query_bthk, key_bgsk, mask_bhts=None, bias_hts=None, scale=None) -> jax.Array:
    """`softmax(query · key · scale + bias)`, in float32.

    Args:
      query_bthk: queries.
      key_bgsk: keys; h/g consecutive heads share one (grouped queries, Ainslie et al. 2023).
      mask_bhts: boolean, broadcastable to [b, h, t, s], True where a query may look; None for everywhere.
      bias_hts: what to add to the scores.
      scale: default: 1 / sqrt(k).

    Returns:
      float32 [b, h, t, s]; each row sums to 1.
    """
    batch, queries, heads, size = query_bthk.shape
    groups, keys = key_bgsk.shape[1:3]
    query = (query_bthk * (size**-0.5 if scale is None else scale)).reshape(batch, queries, groups, -1, size)
    scores = jnp.einsum("btgrk,bgsk->bgrts", query, key_bgsk, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, queries, keys)
    if bias_hts is not None:
        scores = scores + bias_hts
    if mask_bhts is not None:
        scores = jnp.where(mask_bhts, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def mix(weights_bhts: jax.Array, value_bgsk: jax.Array) -> jax.Array:
    """The values, [b, t, h, k], in the proportions of the weights."""
    batch, heads, queries, keys = weights_bhts.shape
    groups, size = value_bgsk.shape[1], value_bgsk.shape[-1]
    weights = weights_bhts.astype(value_bgsk.dtype).reshape(batch, groups, -1, queries, keys)
    return jnp.einsum("bgrts,bgsk->btgrk", weights, value_bgsk).reshape(batch, queries, heads, size)


def attend(query_bthk, keys: KeyValue, mask=None, bias_hts=None, scale=None, rate=0.0, key=None, kernel="auto"):
    """Attention without a whole matrix of scores: memory grows with a row's length and not with its square.

    Args:
      query_bthk: queries.
      keys: keys and values.
      mask: a `Mask`, or None.
      bias_hts: what to add to the scores, [h, t, s] or [b, h, t, s].
      scale: as in `attention_weights`.
      rate: of dropout on the weights.
      key: for dropout; None for none.
      kernel: as in `Attention`.

    Returns:
      [b, t, h, k].
    """
    way = kernels.choose(kernel, query_bthk, keys.key, mask, bias_hts is not None, key is not None)
    by_parts = functools.partial(_attend_by_parts, query_bthk, keys, mask, bias_hts, scale, rate, key)
    if way == "blocks":
        return by_parts()
    arrays = query_bthk, keys.key, keys.value, mask, query_bthk.shape[-1] ** -0.5 if scale is None else scale
    return kernels.splash(*arrays) if way == "splash" else kernels.cudnn(*arrays, otherwise=by_parts)


def _attend_by_parts(query_bthk, keys, mask, bias_hts, scale, rate, key):
    """Attention part by part of the queries.

    Where no query sees a later key, each part leaves out the keys behind it. A part of many queries goes block by
    block.
    """
    length = query_bthk.shape[1]
    if jax.export.is_symbolic_dim(length):  # A program for rows of any length, which has no parts of a length.
        return _attend_at_once(keys, scale, rate, query_bthk, mask, bias_hts, key)
    in_order = mask is not None and mask.in_order
    size = max(SHORTEST_PART, -(-length // CAUSAL_PARTS)) if in_order else length
    mixed = []
    for number, start in enumerate(range(0, length, size)):
        queries = slice(start, min(start + size, length))
        seen = slice(0, queries.stop if in_order else None)
        part = (
            query_bthk[:, queries],
            None if mask is None else mask.part(queries, seen),
            None if bias_hts is None else bias_hts[..., queries, seen],
            None if key is None else jax.random.fold_in(key, number),
        )
        mixed.append(_attend_part(KeyValue(keys.key[:, :, seen], keys.value[:, :, seen]), scale, rate, *part))
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _attend_at_once(keys, scale, rate, query, mask, bias, key):
    weights = attention_weights(query, keys.key, mask and mask.dense(), bias, scale)
    return mix(dropout(weights, rate, key), keys.value)


def _attend_part(keys, scale, rate, query_bthk, mask, bias_hts, key):
    """All queries at once where they are few, or in a loop over blocks of them."""
    length = query_bthk.shape[1]
    attend_block = functools.partial(_attend_at_once, keys, scale, rate)
    if length <= BLOCK:
        return attend_block(query_bthk, mask, bias_hts, key)
    count = -(-length // BLOCK)
    size = -(-length // count)

    def split(array, axis):  # The blocks in front, the last one padded.
        axis %= array.ndim
        padding = [(0, 0)] * axis + [(0, count * size - length)] + [(0, 0)] * (array.ndim - axis - 1)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)

    def body(_, block):
        number, query, of_queries, bias = block
        seen = mask and mask.replace(**of_queries)
        return None, attend_block(query, seen, bias, None if key is None else jax.random.fold_in(key, number))

    of_queries = {} if mask is None else {name: getattr(mask, name) for name in ("query_segments", "query_order")}
    blocks = (
        jnp.arange(count),
        split(query_bthk, 1),
        jax.tree.map(lambda array: split(array, 1), of_queries),
        None if bias_hts is None else split(bias_hts, -2),
    )
    # The backward pass computes each block's weights again, instead of all of them waiting for it.
    _, mixed = jax.lax.scan(jax.checkpoint(body), None, blocks)
    return jnp.moveaxis(mixed, 0, 1).reshape(len(query_bthk), count * size, *mixed.shape[3:])[:, :length]


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to a memory: [b, t, d] → [b, t, d]."""

    kv_heads: int | None = None
    """Heads of keys and values, each shared by several of queries; by default one a head."""
    head_dim: int | None = None
    """Size of a head; by default the width divided among the heads."""
    bias: bool = True
    """Whether the four maps have biases."""
    scale_scores: bool = True
    """Whether scores are divided by sqrt(head_dim); T5's are not, and its queries begin smaller instead."""
    head_norm: nn.Module | None = None
    """The norm of each head's queries and of its keys, such as `HeadRMSNorm()`; None: none."""
    kernel: kernels.Kernel = "auto"
    """What computes it: auto, splash on TPU, cuDNN on GPU, or blocks of queries on CPU and where neither serves."""

    def __post_init__(self):
        super().__post_init__()
        for field in ("kv_heads", "head_dim"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"attention.{field}={value}: expected at least 1")

    def sizes(self, heads: int, width: int) -> tuple[int, int]:
        """Heads of keys and values, and the size of a head, in a stack of that width."""
        return self.kv_heads or heads, self.head_dim or width // heads

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | KeyValue | None = None,
        mask: Mask | None = None,
        *,
        heads: int,
        dropout: float = 0.0,
        dtype: DType = "auto",
        train: bool = False,
        placement: Placement | None = None,
        cache: KeyValue | None = None,
        slot: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None, KeyValue]:
        """Attends.

        Args:
          x: [b, t, d].
          memory: what to attend to, [b, s, d], or its keys and values as an earlier call returned them. Default: `x`.
          mask: which key each query sees. Default: all.
          heads: number of heads of queries; it divides the width unless `head_dim` is set.
          dropout: rate of dropout on the weights, when training.
          dtype: what to compute in.
          train: whether to drop out; needs the rng stream `dropout`.
          placement: what a position scheme does here.
          cache: keys and values of earlier tokens, to which those of `x` are added.
          slot: scalar: where in the cache those of `x` begin.
          return_weights: whether to return the weights.

        Returns:
          The output, the weights before dropout, float32 [b, h, t, s], or None, and the keys and values attended to.
        """
        width = x.shape[-1]
        groups, head_dim = self.sizes(heads, width)
        placement = placement or Placement()
        bias = placement.bias
        scale = head_dim**-0.5 if self.scale_scores else 1.0

        def project(name, letters, inputs, count, gain=1.0):
            shape = (width, count, head_dim)
            return Linear(f"btd,d{letters}->bt{letters}", shape, self.bias, dtype, gain, name=name)(inputs)

        query = project("query", "hk", x, heads, gain=1.0 if self.scale_scores else head_dim**-0.5)
        if self.head_norm is not None:
            query = self.head_norm.copy(name="query_norm")(query)
        if isinstance(memory, KeyValue):
            keys = memory
        else:
            memory = x if memory is None else memory
            letters = "hk" if groups == heads else "gk"
            key, value = project("key", letters, memory, groups), project("value", letters, memory, groups)
            if self.head_norm is not None:
                key = self.head_norm.copy(name="key_norm")(key)
            if placement.key is not None:
                key = rotate(key, placement.key)
            keys = KeyValue(key.swapaxes(1, 2), value.swapaxes(1, 2))
        if placement.query is not None:
            query = rotate(query, placement.query)
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
            keys = jax.tree.map(lambda kept, new: write(kept, new.astype(kept.dtype)), cache, keys)
        key = self.make_rng("dropout") if train and dropout else None
        weights = None
        if return_weights:
            seen = mask and mask.dense()
            weights = attention_weights(query, keys.key, seen, bias, scale)
            mixed = mix(_dropout(weights, dropout, key), keys.value)
        else:
            mixed = attend(query, keys, mask, bias, scale, dropout, key, self.kernel)
        output = Linear("bthk,hkd->btd", (heads, head_dim, width), self.bias, dtype, name="output")
        return output(mixed), weights, keys


_dropout = dropout
