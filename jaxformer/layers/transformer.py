"""The one block that every family is made of, and the stack of it."""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention, KeyValue
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, compute_dtype
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import Placement
from jaxformer.parallel import metadata, sharding

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class Cache:
    """What decoding keeps of the tokens so far: an argument of a stack, and part of its result."""

    layers: tuple[KeyValue, ...]
    """Keys and values of self-attention, a layer each, with a slot a token: [b, g, s, k]."""
    segments: jax.Array
    """Integers [b, s]: 1 where a slot has a token, 0 where it is padding or free."""
    used: jax.Array
    """Scalar: slots filled so far, in every row."""
    memory: tuple[KeyValue, ...] | None = None
    """Keys and values of cross-attention, a layer each."""
    memory_segments: jax.Array | None = None
    """Integers [b, s]: 0 where the memory is padding."""

    def room_for(self, tokens: int) -> "Cache":
        """The cache with so many more slots."""
        pad = [(0, 0), (0, 0), (0, tokens), (0, 0)]
        layers = jax.tree.map(lambda array: jnp.pad(array, pad), self.layers)
        return self.replace(layers=layers, segments=jnp.pad(self.segments, pad[1:3]))

    def mask(self, segments: jax.Array, order: jax.Array) -> Mask:
        """What new tokens see: all before them, and of each other those that are not above them in order.

        Args:
          segments: integers [b, t].
          order: integers [b, t] or [1, t], from `used` on.
        """
        slots = jnp.arange(self.segments.shape[1])
        free = slots >= self.used + order.shape[1]
        keys = jnp.broadcast_to(jnp.where(free, jnp.iinfo(jnp.int32).max, slots), (order.shape[0], slots.shape[0]))
        return Mask(segments, self.segments, order, jax.lax.dynamic_update_slice_in_dim(keys, order, self.used, axis=1))


@flax.struct.dataclass
class BlockOutput:
    """What a block computed."""

    hidden: jax.Array
    """[b, t, d], or [b, m, d] at some positions."""
    attention: jax.Array | None
    """Weights of self-attention, float32 [b, h, t, s], where they were asked for."""
    keys: KeyValue
    """Keys and values of self-attention."""
    memory: KeyValue | None
    """Those of cross-attention."""


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, and MLP: each with dropout, a residual connection and a
    norm before or after."""

    heads: int
    attention: nn.Module
    mlp: nn.Module
    norm: nn.Module
    norm_position: Literal["before", "after"]
    dropout: float
    attention_dropout: float
    dtype: DType
    residual: nn.Module | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Mask | None = None,
        train: bool = False,
        return_attention: bool = False,
        at: jax.Array | None = None,
        placement: Placement | None = None,
        memory: jax.Array | KeyValue | None = None,
        memory_mask: Mask | None = None,
        cache: KeyValue | None = None,
        slot: jax.Array | None = None,
        depth: jax.Array | float = 1.0,
    ) -> BlockOutput:
        """Maps x [b, t, d] to the block's output; arguments as those of `Attention`.

        With `at`, integers [b, m], the output is computed at these positions alone. `depth` is where the block stands
        in its stack, from 0 for the first to 1 for the last.
        """
        drop, rate = Dropout(self.dropout), self.attention_dropout
        settings = {"heads": self.heads, "dropout": rate, "dtype": self.dtype, "train": train}
        before = self.norm_position == "before"

        def sublayer(x, name, function):
            """x + dropout(function(x)), with the norm in its place; the function's other results too."""
            norm = self.norm.copy(name=f"{name}_norm")
            y, *others = function(norm(x) if before else x)
            if self.residual is not None:
                y = self.residual.copy(name=f"{name}_residual")(y, depth, train)
            x = take(x, at if name == "attention" else None) + drop(y, train)
            return x if before else norm(x), others

        def attend(x):
            attention = self.attention
            if at is None:
                options = {"placement": placement, "cache": cache, "slot": slot, "return_weights": return_attention}
                return attention(x, None, mask, **settings, **options)
            options = {"placement": placement and placement.at(at)}
            return attention(take(x, at), x, mask and mask.at(at), **settings, **options)

        def attend_memory(x):
            seen = memory_mask if memory_mask is None or at is None else memory_mask.at(at)
            return self.attention.copy(name="cross_attention")(x, memory, seen, **settings)

        x, (weights, keys) = sublayer(x, "attention", attend)
        memory_keys = None
        if memory is not None:
            x, (_, memory_keys) = sublayer(x, "cross_attention", attend_memory)
        x, _ = sublayer(x, "mlp", lambda x: (self.mlp(x, self.dtype),))
        return BlockOutput(sharding.constrain(x, "btd"), weights, keys, memory_keys)


@flax.struct.dataclass
class TransformerOutput:
    """What a stack computed."""

    hidden: jax.Array
    """The last block's output, [b, t, d] or [b, m, d]; normalised where norms come before."""
    attention: jax.Array | None = None
    """Weights of self-attention, float32 [l, b, h, t, s], where they were asked for."""
    cache: Cache | None = None
    """The cache with the new tokens in it, where there was one."""


class Transformer(nn.Module):
    """A stack of blocks: the hyperparameters that the families share (Vaswani et al. 2017)."""

    width: int = 768
    """Size of the residual stream."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; they divide the width."""
    attention: nn.Module = Attention()
    """The attention of each block."""
    mlp: nn.Module = Mlp()
    """The feed-forward network of each block."""
    norm: nn.Module = LayerNorm()
    """The normalisation, two in each block."""
    norm_position: Literal["before", "after"] = "before"
    """Norm before each layer (pre-norm, stable when deep) and at the end, or after each residual sum (post-norm, the
    paper's)."""
    position_embedding: nn.Module | None = None
    """How positions act in self-attention, such as `Rotary()`; None: not at all."""
    dropout: float = 0.1
    """Rate of dropout on embeddings and on each layer's output."""
    attention_dropout: float = 0.1
    """Rate of dropout on attention weights."""
    dtype: DType = "auto"
    """What to compute in; auto is bfloat16 on accelerators and float32 on CPU."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again to save memory: nothing, all but matrix products, or whole blocks."""
    unroll: int | None = None
    """Blocks a loop iteration: more is faster to run and slower to compile, and saves less memory by remat. By default
    all on CPU without remat, else 1."""
    residual: nn.Module | None = None
    """What a layer's output goes through before it is added, such as `Residual(drop_path=0.1)`; None: nothing."""

    def __post_init__(self):
        for field in ("norm", "position_embedding"):
            module = getattr(self, field)
            # Linen takes one instance, such as a field's default, for one set of parameters wherever it stands.
            if isinstance(module, nn.Module) and module.parent is None:
                object.__setattr__(self, field, fresh(module))
        super().__post_init__()
        for field in ("width", "depth", "heads", "unroll"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"transformer.{field}={value}: expected at least 1")
        if self.width % self.heads and self.attention.head_dim is None:
            raise InputError(
                f"transformer.heads={self.heads} does not divide transformer.width={self.width}: "
                f"{_nearest_divisor(self.width, self.heads)} would"
            )
        groups = self.attention.kv_heads or self.heads
        if self.heads % groups:
            raise InputError(
                f"transformer.attention.kv_heads={groups} does not divide transformer.heads={self.heads}: "
                f"{_nearest_divisor(self.heads, groups)} would"
            )
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"transformer.{field}={getattr(self, field)}: expected 0 or more, below 1")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Mask | None = None,
        train: bool = False,
        return_attention: bool = False,
        at: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: Mask | None = None,
        cache: Cache | None = None,
    ) -> TransformerOutput:
        """Runs all blocks.

        Args:
          x: embeddings [b, t, d].
          mask: which token each token sees; None for every. With a cache its order alone counts, and None is causal.
          train: whether to drop out; needs the rng stream `dropout`.
          return_attention: whether to return the attention weights too; not together with `at`.
          at: integers [b, m]: the positions whose output is wanted. The last block leaves the others out, which
            with BERT's 15% saves most of it.
          position_ids: integers [b, t], for a position scheme. Default: 0, 1, 2, ...
          memory: what cross-attention attends to, [b, s, d]; with a cache needed once only.
          memory_mask: which part of it each token sees.
          cache: of earlier tokens; `x` are those after them.
        """
        if return_attention and at is not None:
            raise ValueError("return_attention and at: the last block's weights would have another shape")
        block = self._block()
        if self.is_initializing():
            self.param("blocks", _stacked(block, self.depth), x, memory)
        stacked = nn.unbox(self.get_variable("params", "blocks"))
        if cache is not None:
            return self._decode(block, stacked, x, mask, position_ids, memory, cache)
        index = jnp.arange(x.shape[1])
        placement = self._place(index[None] if position_ids is None else position_ids, index, index)
        key = self.make_rng("dropout") if train else None

        def layer(x, numbered, at=None):
            number, params = numbered
            rngs = {"dropout": jax.random.fold_in(key, number)} if train else None
            others = (return_attention, at, placement, memory, memory_mask)
            depth = number / max(1, self.depth - 1)
            output = block.apply({"params": params}, x, mask, train, *others, depth=depth, rngs=rngs)
            return output.hidden, output.attention

        # Unrolled, the compiler computes all blocks again at once, and saves no memory.
        fast = sharding.platform() == "cpu" and self.remat == "none"
        unroll = self.unroll or (self.depth if fast else 1)
        if self.remat != "none":
            # Outside a loop the compiler would see that something is computed twice, and keep it instead.
            alone = unroll > 1 or at is not None
            layer = jax.checkpoint(layer, prevent_cse=alone, policy=REMAT_POLICIES[self.remat])
        blocks = jnp.arange(self.depth), stacked
        if at is None:
            x, attention = jax.lax.scan(layer, x, blocks, unroll=min(unroll, self.depth))
        else:
            first, last = jax.tree.map(lambda array: array[:-1], blocks), jax.tree.map(lambda array: array[-1], blocks)
            x, _ = jax.lax.scan(layer, x, first, unroll=max(1, min(unroll, self.depth - 1)))
            x, attention = layer(x, last, at)
        return TransformerOutput(self._end(x), attention)

    def new_cache(self, rows: int, slots: int) -> Cache:
        """A cache without tokens."""
        groups, head_dim = self.attention.sizes(self.heads, self.width)
        empty = jnp.zeros((rows, groups, slots, head_dim), compute_dtype(self.dtype))
        layers = tuple(KeyValue(empty, empty) for _ in range(self.depth))
        return Cache(layers, jnp.zeros((rows, slots), jnp.int32), jnp.zeros((), jnp.int32))

    def _decode(self, block, stacked, x, mask, position_ids, memory, cache) -> TransformerOutput:
        """The blocks one by one, each with a cache of its own, which is updated in place."""
        slots, keys = cache.used + jnp.arange(x.shape[1]), jnp.arange(cache.segments.shape[1])
        segments = jax.lax.dynamic_slice_in_dim(cache.segments, cache.used, x.shape[1], axis=1)
        mask = cache.mask(segments, slots[None] if mask is None else cache.used + mask.query_order)
        memory_mask = None
        if cache.memory_segments is not None:
            memory_mask = Mask.of_segments(jnp.ones_like(segments), cache.memory_segments)
        placement = self._place(slots[None] if position_ids is None else position_ids, slots, keys)
        layers, memories = [], []
        for number, params in enumerate(unstacked(stacked)):
            output = block.apply(
                {"params": params},
                x,
                mask,
                placement=placement,
                memory=memory if cache.memory is None else cache.memory[number],
                memory_mask=memory_mask,
                cache=cache.layers[number],
                slot=cache.used,
            )
            x = output.hidden
            layers.append(output.keys)
            memories.append(output.memory)
        memories = None if memories[0] is None else tuple(memories)
        cache = cache.replace(layers=tuple(layers), used=cache.used + x.shape[1], memory=memories)
        return TransformerOutput(self._end(x), cache=cache)

    def _place(self, position_ids, query_index, key_index) -> Placement | None:
        if self.position_embedding is None:
            return None
        _, head_dim = self.attention.sizes(self.heads, self.width)
        return self.position_embedding(position_ids, query_index, key_index, self.heads, head_dim)

    def _end(self, x: jax.Array) -> jax.Array:
        return x if self.norm_position == "after" else self.norm(x)

    def _block(self) -> Block:
        parts = (fresh(self.attention), fresh(self.mlp), fresh(self.norm))
        rest = (self.norm_position, self.dropout, self.attention_dropout, self.dtype)
        residual = None if self.residual is None else fresh(self.residual)
        return Block(self.heads, *parts, *rest, residual, parent=None)


def take(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """The vectors of `x` [b, t, d] at the positions `at` [b, m]: [b, m, d]; all of them where `at` is None."""
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)


def fresh(module: nn.Module) -> nn.Module:
    """The same hyperparameters with no parameters yet: whoever calls a module that others call shares theirs."""
    return module.clone(parent=None, name=None)


def unstacked(blocks: Any) -> tuple[Any, ...]:
    """The parameters of each block: of a stack, or of what this function made of one."""
    if isinstance(blocks, tuple):
        return blocks
    depth = len(jax.tree.leaves(blocks)[0])
    return tuple(jax.tree.map(lambda array: array[layer], blocks) for layer in range(depth))  # noqa: B023


def _stacked(block: Block, depth: int):
    """An initializer of the parameters of `depth` blocks, with a leading layer axis: the layout is one, however run."""

    def stacked(key, x, memory):
        params = jax.vmap(lambda key: block.init(key, x, memory=memory)["params"])(jax.random.split(key, depth))
        return jax.tree.map(lambda box: box.add_axis(0, {"letter": "l"}), params, is_leaf=metadata.is_boxed)

    return stacked


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [i for i in range(1, number + 1) if number % i == 0]
    return min(divisors, key=lambda divisor: abs(divisor - near))
