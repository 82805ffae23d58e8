"""Scaled dot-product attention and the attention layer (Vaswani et al. 2017, §3.2)."""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.export
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers import kernels, ring
from jaxformer.layers.cache import KeyValue, LayerCache
from jaxformer.layers.dropout import dropout
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import OF_QUERIES, Mask
from jaxformer.layers.positions import Placement, rotate
from jaxformer.parallel import sharding

BLOCK = 256
"""Maximum number of queries whose attention scores are in memory at the same time. More queries are processed in blocks
of at most this size.
"""
CAUSAL_PARTS = 4
"""Maximum number of chunks into which causal attention divides the queries. For each chunk, the keys after it are
skipped. With more chunks, more keys are skipped, but there is more overhead.
"""
WINDOW_PARTS = 16
"""Maximum number of chunks into which attention with a window divides the queries."""
SHORTEST_PART = 64
"""Minimum number of queries per chunk in causal or windowed attention."""


def attention_weights(query_bthk, key_bgsk, mask_bhts=None, bias_hts=None, scale=None) -> jax.Array:
    """Computes the attention weights `softmax(query · key · scale + bias)` in float32.

    Args:
      query_bthk: queries, [batch, queries, heads, head_dim].
      key_bgsk: keys, [batch, kv_heads, keys, head_dim]. Each group of heads / kv_heads consecutive query heads shares
        one key head (grouped-query attention, Ainslie et al. 2023).
      mask_bhts: boolean, broadcastable to [batch, heads, queries, keys], True if a query may attend to a key. If None,
        all are allowed.
      bias_hts: bias to add to the scores, [heads, queries, keys] or [batch, heads, queries, keys]. None for no bias.
      scale: factor of the products of queries and keys. Defaults to 1 / sqrt(head_dim).

    Returns:
      Attention weights, float32 [batch, heads, queries, keys]. They sum to 1 over the keys.
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
    """Averages the values with the attention weights. Returns [batch, queries, heads, head_dim].

    Args:
      weights_bhts: attention weights, [batch, heads, queries, keys].
      value_bgsk: values, [batch, kv_heads, keys, head_dim].
    """
    batch, heads, queries, keys = weights_bhts.shape
    groups, size = value_bgsk.shape[1], value_bgsk.shape[-1]
    weights = weights_bhts.astype(value_bgsk.dtype).reshape(batch, groups, -1, queries, keys)
    return jnp.einsum("bgrts,bgsk->btgrk", weights, value_bgsk).reshape(batch, queries, heads, size)


@flax.struct.dataclass
class AttendOptions:
    """Arguments of the attention functions other than queries, keys and values."""

    mask: Mask | None = None
    """Mask of the keys that each query attends to. If None, each query attends to all keys."""
    bias: jax.Array | None = None
    """Bias to add to the scores, [heads, queries, keys] or [batch, heads, queries, keys]. If None, no bias is added."""
    key: jax.Array | None = None
    """Random key for dropout. If None, no dropout is applied."""
    scale: float | None = flax.struct.field(pytree_node=False, default=None)
    """Factor of the products of queries and keys. Defaults to 1 / sqrt(head_dim)."""
    rate: float = flax.struct.field(pytree_node=False, default=0.0)
    """Dropout rate of the attention weights."""
    kernel: kernels.Kernel = flax.struct.field(pytree_node=False, default="auto")
    """Name of the implementation to use. See `Attention.kernel`."""

    def part(self, queries: slice, keys: slice, number: int) -> "AttendOptions":
        """Returns the options for attention of one slice of the queries to one slice of the keys: mask and bias are
        sliced, and the dropout key is derived from `number`, the index of the slice of queries.
        """
        return dataclasses.replace(
            self,
            mask=self.mask and self.mask.part(queries, keys),
            bias=None if self.bias is None else self.bias[..., queries, keys],
            key=None if self.key is None else jax.random.fold_in(self.key, number),
        )


def attend(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions | None = None) -> jax.Array:
    """Computes attention without storing the scores of all queries at the same time, so that memory grows linearly with
    the sequence length.

    Args:
      query_bthk: queries, [batch, queries, heads, head_dim].
      keys: keys and values, [batch, kv_heads, keys, head_dim].
      options: mask and other options. Defaults to full attention without dropout.

    Returns:
      Attention output, [batch, queries, heads, head_dim].
    """
    options = options or AttendOptions()
    mask, biased, dropped = options.mask, options.bias is not None, options.key is not None
    way = kernels.choose(options.kernel, query_bthk, keys.key, mask, biased, dropped)
    if way == "blocks":
        return _attend_by_parts(query_bthk, keys, options)
    scale = query_bthk.shape[-1] ** -0.5 if options.scale is None else options.scale
    if way == "ring":
        return ring.ring(query_bthk, keys.key, keys.value, mask, options.bias, scale)
    if way == "splash":
        return kernels.splash(query_bthk, keys.key, keys.value, mask, scale)
    by_parts = functools.partial(_attend_by_parts, query_bthk, keys, options)
    return kernels.cudnn(query_bthk, keys.key, keys.value, mask, scale, otherwise=by_parts)


def _attend_by_parts(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> jax.Array:
    """Computes attention in chunks of consecutive queries. Each chunk is computed only with the range of keys that a
    causal mask or a window lets it attend to, to save computation.
    """
    length, mask = query_bthk.shape[1], options.mask
    if jax.export.is_symbolic_dim(length):  # A program for rows of any length cannot be divided into chunks.
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
    if sharding.current_num_parts("query_position") > 1:  # Each device has some queries and all keys.
        query_bthk = sharding.constrain(query_bthk, "bthk")
        keys = jax.tree.map(lambda array: sharding.constrain(array, "bgsk"), keys)
    return attend_with_weights(query_bthk, keys, options)[1]


def _attend_part(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> jax.Array:
    """Computes attention for all queries at once if there are at most `BLOCK`, and otherwise in a loop over blocks of
    queries, to save memory.
    """
    length, mask = query_bthk.shape[1], options.mask
    if length <= BLOCK:
        return _attend_at_once(query_bthk, keys, options)
    count = -(-length // BLOCK)
    size = -(-length // count)

    def split(array, axis):  # The block axis comes first. The last block is padded.
        axis %= array.ndim
        padding = [(0, 0)] * axis + [(0, count * size - length)] + [(0, 0)] * (array.ndim - axis - 1)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)

    def body(_, block):
        number, query, of_queries, bias = block
        key = None if options.key is None else jax.random.fold_in(options.key, number)
        seen = mask and mask.with_queries(of_queries)
        return None, _attend_at_once(query, keys, dataclasses.replace(options, mask=seen, bias=bias, key=key))

    of_queries = {} if mask is None else {name: getattr(mask, name) for name in OF_QUERIES}
    blocks = (
        jnp.arange(count),
        split(query_bthk, 1),
        jax.tree.map(lambda array: split(array, 1), of_queries),
        None if options.bias is None else split(options.bias, -2),
    )
    # The backward pass recomputes the weights of each block, instead of keeping all of them in memory.
    _, mixed = jax.lax.scan(jax.checkpoint(body), None, blocks)
    return jnp.moveaxis(mixed, 0, 1).reshape(len(query_bthk), count * size, *mixed.shape[3:])[:, :length]


@flax.struct.dataclass
class AttentionInputs:
    """Inputs of an attention layer other than `x`."""

    memory: jax.Array | KeyValue | None = None
    """Vectors to attend to (cross-attention), [batch, keys, embed], or their keys and values from an earlier call. If
    None, the layer attends to its input `x` (self-attention).
    """
    mask: Mask | None = None
    """Mask of the keys that each query attends to. If None, each query attends to all keys."""
    placement: Placement | None = None
    """Position information that the layer applies: rotations of queries and keys (rotary embeddings), vectors added to
    them, or biases added to the scores. If None, the layer applies none.
    """
    cache: LayerCache | None = None
    """Cache of the keys and values of earlier tokens, for decoding. The keys and values of `x` are written to it. None
    without a cache.
    """
    used: jax.Array | int = 0
    """Number of tokens in the cache before this call, scalar."""
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to apply dropout. Requires the rng stream `dropout`."""
    return_weights: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the attention weights too. This computes the full weight matrix instead of using the faster
    implementation.
    """


@flax.struct.dataclass
class AttentionOutput:
    """Outputs of an attention layer: vectors, keys and values, and optionally attention weights and cache."""

    output: jax.Array
    """Output vectors, [batch, length, embed]."""
    weights: jax.Array | None
    """Attention weights before dropout, float32 [batch, heads, queries, keys]. None unless
    `AttentionInputs.return_weights` is set.
    """
    keys: KeyValue
    """Keys and values that the queries attended to. With a cache, these include earlier tokens."""
    cache: LayerCache | None = None
    """Updated cache, to which the keys and values of the input `x` have been added. None if the layer was called
    without a cache.
    """


class Attention(nn.Module):
    """Multi-head attention layer. Maps the input vectors `x` [batch, length, embed] to output vectors of the same
    shape. The queries attend to `x` itself, or to a memory (cross-attention).
    """

    kv_heads: int | None = None
    """Number of key and value heads. Each is shared by several query heads. Defaults to the number of query heads."""
    head_dim: int | None = None
    """Size of each head's queries, keys and values. Defaults to the width of the model divided by the number of heads.
    """
    bias: bool = True
    """Whether the linear layers of queries, keys, values and output have biases."""
    key_bias: bool = True
    """Whether the linear layer of keys also has a bias. Only used if `bias` is True. A key bias adds the same number to
    all scores of a query, so attention does not depend on it.
    """
    scale_scores: bool = True
    """Whether to divide scores by sqrt(head_dim). If False, as in T5, the initial query kernel is smaller instead."""
    query_pre_attn_scalar: int | None = None
    """Attention scores are divided by the square root of this number, as in Gemma. Defaults to the head size. Only used
    if `scale_scores` is True.
    """
    head_norm: nn.Module | None = None
    """Normalization of the queries and keys of each head, such as `HeadRMSNorm()`. If None, they are not normalized."""
    window: int | None = None
    """Window size of self-attention: a query attends only to keys fewer than this number of positions away. If None,
    the distance is not limited.
    """
    kernel: kernels.Kernel = "auto"
    """Implementation of attention. `auto` selects `splash` on TPU, `cudnn` on GPU, and `blocks` (blocks of queries in
    plain JAX) on CPU or if the platform's kernel does not support the layer. If the mesh axis `sequence` divides
    sequences among devices, `auto` selects `splash`, or `ring` if splash attention is not supported. `ring` sends keys
    from device to device. The other implementations gather all keys of a sequence on each device.
    """

    def __post_init__(self):
        super().__post_init__()
        for field in ("kv_heads", "head_dim", "query_pre_attn_scalar", "window"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"attention.{field}={value}: expected at least 1")

    def sizes(self, heads: int, width: int) -> tuple[int, int]:
        """Returns the number of key and value heads, and the head size, for a model with `heads` query heads and
        vectors of size `width`.
        """
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
        """Computes attention.

        Args:
          x: input vectors, [batch, length, embed].
          inputs: memory to attend to, mask and other inputs. Defaults to full self-attention.
          heads: number of query heads. It must divide the width unless `head_dim` is set.
          dropout: dropout rate of the attention weights during training.
          dtype: data type to compute in, such as `bfloat16`. See `Linear.dtype`.
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
        scale = (self.query_pre_attn_scalar or head_dim) ** -0.5 if self.scale_scores else 1.0
        options = AttendOptions(
            mask=inputs.mask,
            bias=_bias(query, placement, scale),
            key=self.make_rng("dropout") if inputs.train and dropout else None,
            scale=scale,
            rate=dropout,
            kernel=self.kernel,
        )
        weights = None
        if inputs.return_weights:
            weights, mixed = attend_with_weights(query, keys, options)
        else:
            mixed = attend(query, keys, options)
        output = Linear("bthk,hkd->btd", (heads, head_dim, width), self.bias, dtype, name="output")
        return AttentionOutput(output(sharding.constrain(mixed, "bthk")), weights, keys, cache)

    def _query(self, x: jax.Array, placement: Placement, heads: int, dtype: DType) -> jax.Array:
        """Projects the input [batch, length, embed] to queries [batch, length, heads, head_dim], and applies head norms
        and position information (`placement`) to them.
        """
        width, (_, head_dim) = x.shape[-1], self.sizes(heads, x.shape[-1])
        gain = 1.0 if self.scale_scores else head_dim**-0.5
        project = Linear("btd,dhk->bthk", (width, heads, head_dim), self.bias, dtype, gain, name="query")
        query = project(x if placement.query_added is None else x + placement.query_added.astype(x.dtype))
        if self.head_norm is not None:
            query = self.head_norm.copy(name="query_norm")(query)
        return query if placement.query is None else rotate(query, placement.query)

    def _keys(self, memory: jax.Array, placement: Placement, heads: int, dtype: DType) -> KeyValue:
        """Projects `memory` [batch, keys, embed] to keys and values [batch, kv_heads, keys, head_dim], and applies head
        norms and position information (`placement`) to the keys.
        """
        width = memory.shape[-1]
        groups, head_dim = self.sizes(heads, width)
        equation = "btd,dhk->bthk" if groups == heads else "btd,dgk->btgk"
        shape = (width, groups, head_dim)
        added = memory if placement.key_added is None else memory + placement.key_added.astype(memory.dtype)
        key = Linear(equation, shape, self.bias and self.key_bias, dtype, name="key")(added)
        value = Linear(equation, shape, self.bias, dtype, name="value")(memory)
        if self.head_norm is not None:
            key = self.head_norm.copy(name="key_norm")(key)
        if placement.key is not None:
            key = rotate(key, placement.key)
        return KeyValue(key.swapaxes(1, 2), value.swapaxes(1, 2))


def _bias(query_bthk: jax.Array, placement: Placement, scale: float) -> jax.Array | None:
    """Returns the bias of the attention scores: that of the placement, and the products of the queries with the vectors
    that are added to keys, float32 [heads, queries, keys] or [batch, heads, queries, keys]. None without either.
    """
    relative = placement.relative_keys
    if relative is None:
        return placement.bias
    query = (query_bthk * scale).astype(jnp.float32)
    if relative.ndim == 3:
        products = jnp.einsum("bthk,tsk->bhts", query, relative)
    else:
        relative = jnp.broadcast_to(relative, (len(query), *relative.shape[1:]))
        products = jnp.einsum("bthk,btsk->bhts", query, relative)
    return products if placement.bias is None else products + placement.bias


def attend_with_weights(query_bthk: jax.Array, keys: KeyValue, options: AttendOptions) -> tuple[jax.Array, jax.Array]:
    """Computes attention with the full weight matrix in memory. Returns the weights before dropout, float32 [batch,
    heads, queries, keys], and the output, [batch, queries, heads, head_dim].
    """
    mask = options.mask and options.mask.dense()
    weights = attention_weights(query_bthk, keys.key, mask, options.bias, options.scale)
    return weights, mix(dropout(weights, options.rate, options.key), keys.value)
