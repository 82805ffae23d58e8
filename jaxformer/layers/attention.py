"""Scaled dot-product attention and the layer around it (Vaswani et al. 2017, §3.2)."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.export
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers import kernels
from jaxformer.layers.cache import KeyValue, LayerCache
from jaxformer.layers.dropout import dropout
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import OF_QUERIES, Mask
from jaxformer.layers.positions import Placement, rotate

BLOCK = 256
"""Queries whose scores exist at once, at most."""
CAUSAL_PARTS = 4
"""Parts of a row in which queries see no later key; more of them leave out more, and are slower each."""
WINDOW_PARTS = 16
"""The same where there is a window."""
SHORTEST_PART = 64


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


@flax.struct.dataclass
class AttendOptions:
    """The arguments of attention besides queries, keys and values."""

    mask: Mask | None = None
    """Which key each query sees; None: all."""
    bias: jax.Array | None = None
    """Added to the scores, [h, t, s] or [b, h, t, s]."""
    key: jax.Array | None = None
    """For dropout; None for none."""
    scale: float | None = flax.struct.field(pytree_node=False, default=None)
    """As in `attention_weights`."""
    rate: float = flax.struct.field(pytree_node=False, default=0.0)
    """Rate of dropout on the weights."""
    kernel: kernels.Kernel = flax.struct.field(pytree_node=False, default="auto")
    """As in `Attention`."""

    def part(self, queries: slice, keys: slice, number: int) -> "AttendOptions":
        """The options of some queries and keys, the `number`-th part of all."""
        return self.replace(
            mask=self.mask and self.mask.part(queries, keys),
            bias=None if self.bias is None else self.bias[..., queries, keys],
            key=None if self.key is None else jax.random.fold_in(self.key, number),
        )


def attend(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions | None = None) -> jax.Array:
    """Attention without a whole matrix of scores: memory grows with a row's length and not with its square.

    Args:
      query_bthk: queries.
      keys: keys and values.
      options: the mask, and the like.

    Returns:
      [b, t, h, k].
    """
    options = options or AttendOptions()
    mask, biased, dropped = options.mask, options.bias is not None, options.key is not None
    way = kernels.choose(options.kernel, query_bthk, keys.key, mask, biased, dropped)
    if way == "blocks":
        return _attend_by_parts(query_bthk, keys, options)
    scale = query_bthk.shape[-1] ** -0.5 if options.scale is None else options.scale
    if way == "splash":
        return kernels.splash(query_bthk, keys.key, keys.value, mask, scale)
    by_parts = functools.partial(_attend_by_parts, query_bthk, keys, options)
    return kernels.cudnn(query_bthk, keys.key, keys.value, mask, scale, otherwise=by_parts)


def _attend_by_parts(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> jax.Array:
    """Attention part by part of the queries, each over the keys that its queries may see."""
    length, mask = query_bthk.shape[1], options.mask
    if jax.export.is_symbolic_dim(length):  # A program for rows of any length, which has no parts of a length.
        return _attend_at_once(query_bthk, keys, options)
    in_order = mask is not None and mask.in_order
    window = mask.window if mask is not None and mask.aligned else None
    size = length
    if in_order:
        size = max(SHORTEST_PART, -(-length // CAUSAL_PARTS))
    if window is not None:
        size = min(size, max(SHORTEST_PART, window, -(-length // WINDOW_PARTS)))
    mixed = []
    for number, start in enumerate(range(0, length, size)):
        queries = slice(start, min(start + size, length))
        first = 0 if window is None else max(0, start - window + 1)
        last = keys.key.shape[2] if window is None else min(length, queries.stop + window - 1)
        seen = slice(first, queries.stop if in_order else last)
        part = KeyValue(keys.key[:, :, seen], keys.value[:, :, seen])
        mixed.append(_attend_part(query_bthk[:, queries], part, options.part(queries, seen, number)))
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _attend_at_once(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> jax.Array:
    return attend_with_weights(query_bthk, keys, options)[1]


def _attend_part(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> jax.Array:
    """All queries at once where they are few, or in a loop over blocks of them."""
    length, mask = query_bthk.shape[1], options.mask
    if length <= BLOCK:
        return _attend_at_once(query_bthk, keys, options)
    count = -(-length // BLOCK)
    size = -(-length // count)

    def split(array, axis):  # Blocks first, the last one padded.
        axis %= array.ndim
        padding = [(0, 0)] * axis + [(0, count * size - length)] + [(0, 0)] * (array.ndim - axis - 1)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)

    def body(_, block):
        number, query, of_queries, bias = block
        key = None if options.key is None else jax.random.fold_in(options.key, number)
        seen = mask and mask.with_queries(of_queries)
        return None, _attend_at_once(query, keys, options.replace(mask=seen, bias=bias, key=key))

    of_queries = {} if mask is None else {name: getattr(mask, name) for name in OF_QUERIES}
    blocks = (
        jnp.arange(count),
        split(query_bthk, 1),
        jax.tree.map(lambda array: split(array, 1), of_queries),
        None if options.bias is None else split(options.bias, -2),
    )
    # The backward pass computes each block's weights again, instead of all of them waiting for it.
    _, mixed = jax.lax.scan(jax.checkpoint(body), None, blocks)
    return jnp.moveaxis(mixed, 0, 1).reshape(len(query_bthk), count * size, *mixed.shape[3:])[:, :length]


@flax.struct.dataclass
class AttentionInputs:
    """The inputs of an attention layer besides `x`."""

    memory: jax.Array | KeyValue | None = None
    """The vectors to attend to, [b, s, d], or their keys and values from an earlier call; None: `x`."""
    mask: Mask | None = None
    """Which key each query sees; None: all."""
    placement: Placement | None = None
    """Changes of queries, keys and scores by a position scheme."""
    cache: LayerCache | None = None
    """Keys and values of earlier tokens, to which those of `x` are added."""
    used: jax.Array | None = None
    """Scalar: tokens in the cache."""
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to drop out; needs the rng stream `dropout`."""
    return_weights: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the weights."""


@flax.struct.dataclass
class AttentionOutput:
    """The output of an attention layer."""

    output: jax.Array
    """[b, t, d]."""
    weights: jax.Array | None
    """The weights before dropout, float32 [b, h, t, s], where they were asked for."""
    keys: KeyValue
    """The keys and values that were attended to."""
    cache: LayerCache | None = None
    """The cache with those of `x`, where there was one."""


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
    query_pre_attn_scalar: int | None = None
    """Scores are divided by the square root of this instead, as in Gemma; None: of the head's size."""
    head_norm: nn.Module | None = None
    """The norm of each head's queries and of its keys, such as `HeadRMSNorm()`; None: none."""
    window: int | None = None
    """Self-attention sees keys whose index differs from the query's by less than this; None: all."""
    kernel: kernels.Kernel = "auto"
    """The implementation: auto, splash on TPU, cuDNN on GPU, or blocks of queries on CPU and where neither serves."""

    def __post_init__(self):
        super().__post_init__()
        for field in ("kv_heads", "head_dim", "query_pre_attn_scalar", "window"):
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
        inputs: AttentionInputs | None = None,
        *,
        heads: int,
        dropout: float = 0.0,
        dtype: DType = "auto",
    ) -> AttentionOutput:
        """Attends.

        Args:
          x: [b, t, d].
          inputs: what else the layer is given.
          heads: number of heads of queries; it divides the width unless `head_dim` is set.
          dropout: rate of dropout on the weights, when training.
          dtype: what to compute in.
        """
        inputs, width = inputs or AttentionInputs(), x.shape[-1]
        _, head_dim = self.sizes(heads, width)
        placement = inputs.placement or Placement()
        query = self._query(x, placement, heads, dtype)
        if isinstance(inputs.memory, KeyValue):
            keys = inputs.memory
        else:
            keys = self._keys(x if inputs.memory is None else inputs.memory, placement, heads, dtype)
        cache = inputs.cache
        if cache is not None:
            cache, keys = cache.write(keys, inputs.used)
        options = AttendOptions(
            mask=inputs.mask,
            bias=placement.bias,
            key=self.make_rng("dropout") if inputs.train and dropout else None,
            scale=(self.query_pre_attn_scalar or head_dim) ** -0.5 if self.scale_scores else 1.0,
            rate=dropout,
            kernel=self.kernel,
        )
        weights = None
        if inputs.return_weights:
            weights, mixed = attend_with_weights(query, keys, options)
        else:
            mixed = attend(query, keys, options)
        output = Linear("bthk,hkd->btd", (heads, head_dim, width), self.bias, dtype, name="output")
        return AttentionOutput(output(mixed), weights, keys, cache)

    def _query(self, x: jax.Array, placement: Placement, heads: int, dtype: DType) -> jax.Array:
        """Queries [b, t, h, k]."""
        width, (_, head_dim) = x.shape[-1], self.sizes(heads, x.shape[-1])
        gain = 1.0 if self.scale_scores else head_dim**-0.5
        project = Linear("btd,dhk->bthk", (width, heads, head_dim), self.bias, dtype, gain, name="query")
        query = project(x if placement.query_added is None else x + placement.query_added.astype(x.dtype))
        if self.head_norm is not None:
            query = self.head_norm.copy(name="query_norm")(query)
        return query if placement.query is None else rotate(query, placement.query)

    def _keys(self, memory: jax.Array, placement: Placement, heads: int, dtype: DType) -> KeyValue:
        """Keys and values of a memory [b, s, d]."""
        width = memory.shape[-1]
        groups, head_dim = self.sizes(heads, width)
        equation = "btd,dhk->bthk" if groups == heads else "btd,dgk->btgk"
        shape = (width, groups, head_dim)
        added = memory if placement.key_added is None else memory + placement.key_added.astype(memory.dtype)
        key = Linear(equation, shape, self.bias, dtype, name="key")(added)
        value = Linear(equation, shape, self.bias, dtype, name="value")(memory)
        if self.head_norm is not None:
            key = self.head_norm.copy(name="key_norm")(key)
        if placement.key is not None:
            key = rotate(key, placement.key)
        return KeyValue(key.swapaxes(1, 2), value.swapaxes(1, 2))


def attend_with_weights(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> tuple[jax.Array, jax.Array]:
    """Attention that returns its weights before dropout too, float32 [b, h, t, s]; it holds them whole."""
    mask = options.mask and options.mask.dense()
    weights = attention_weights(query_bthk, keys.key, mask, options.bias, options.scale)
    return weights, mix(dropout(weights, options.rate, options.key), keys.value)
