"""Transformer stack, with the hyperparameters that all model families share."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer.errors import InputError
from jaxformer.layers import pipeline, stack
from jaxformer.layers.attention import Attention
from jaxformer.layers.block import Block, BlockInputs, BlockState, NormPosition, normalise, take
from jaxformer.layers.cache import Cache, KeyValue, LayerCache
from jaxformer.layers.linear import DType, compute_dtype
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.pipeline import Schedule
from jaxformer.layers.positions import Placement, Rotary
from jaxformer.layers.stack import SharedInputs
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings of one kind of block that differ from those of its stack, such as a sliding window. A field that is None
    keeps the setting of the stack.
    """

    attention: nn.Module | None = None
    """Attention layer of the block, such as one with a sliding window. If None, that of the stack."""
    mlp: nn.Module | None = None
    """Feed-forward network of the block, such as one with experts. If None, that of the stack."""
    position_embedding: nn.Module | None = None
    """Position scheme of the block's self-attention, such as a `Rotary` with another base frequency. If None, that of
    the stack.
    """


class BlockParts(NamedTuple):
    """Settings of one kind of block: those of its `Variant`, and those of the stack for each setting that the variant
    does not override.
    """

    attention: nn.Module
    mlp: nn.Module
    position_embedding: nn.Module | None


@flax.struct.dataclass
class TransformerOutput:
    """Output of a stack: hidden vectors and, if requested, attention weights, a cache and the output of each block."""

    hidden: jax.Array
    """Output of the last block, [batch, length, embed] or, at selected positions only, [batch, predictions, embed]. The
    norm at the end of the stack is applied to it, unless `norm_position` is `after` or `last_norm` is False.
    """
    attention: jax.Array | None = None
    """Weights of self-attention, float32 [layers, batch, heads, queries, keys]. None unless requested."""
    cache: Cache | None = None
    """Keys and values of all tokens so far, including the new ones. None if the stack was called without a cache."""
    layers: jax.Array | None = None
    """Output of each block, before the final norm of the stack, [layers, batch, length, embed]. None unless requested.
    """
    memory_attention: jax.Array | None = None
    """Weights of cross-attention, float32 [layers, batch, heads, queries, keys]. None unless requested."""
    means: dict[str, Mean] = flax.struct.field(default_factory=dict)
    """Auxiliary losses and metrics, such as a load-balancing loss, as weighted means over all blocks, keyed by name.
    Training adds the auxiliary losses to its loss."""


class Transformer(nn.Module):
    """Stack of Transformer blocks, with the hyperparameters that all model families share (Vaswani et al. 2017)."""

    width: int = 768
    """Size of the hidden vectors (the residual stream)."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Number of attention heads. It must divide the width unless `attention.head_dim` is set."""
    attention: nn.Module = Attention()
    """Attention layer of each block."""
    mlp: nn.Module = Mlp()
    """Feed-forward network of each block."""
    norm: nn.Module = LayerNorm()
    """Normalization layer of the blocks. `norm_position` determines where it is applied."""
    norm_position: NormPosition = "before"
    """Where norms are applied: `before` each attention layer and MLP, and at the end of the stack; `after` each
    residual sum; or `both` before and after each attention layer and MLP, and at the end of the stack.
    """
    first_norm: bool = True
    """Whether to normalize the input of the first block's attention, if norms are applied before layers. Not needed if
    the embeddings are already normalized.
    """
    last_norm: bool = True
    """Whether to normalize the output of the last block. Not needed if the head normalizes its input. Without effect if
    `norm_position` is `after`.
    """
    position_embedding: nn.Module | None = None
    """Position scheme of self-attention, such as `Rotary()`. If None, self-attention does not use positions."""
    dropout: float = 0.1
    """Dropout rate of the embeddings, and of the output of each attention layer and MLP."""
    attention_dropout: float = 0.1
    """Dropout rate of the attention weights."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""
    remat: Literal["none", "dots", "full", "offload"] = "none"
    """Activations that the backward pass recomputes to save memory: `none`, `dots` (everything except matrix products),
    `full` (everything except the inputs of blocks), or `offload` (as `full`, with the inputs of blocks stored in host
    memory). Training on a CPU does not support `offload`.
    """
    unroll: int | None = None
    """Number of blocks per iteration of the loop over blocks. A larger number runs faster, but compiles more slowly and
    reduces the memory that `remat` saves. Defaults to all blocks on a CPU if `remat` is `none`, otherwise to 1.
    """
    residual: nn.Module | None = None
    """Module that is applied to the output of each attention layer and MLP before it is added to the residual stream,
    such as `ResidualBranch(drop_path=0.1)` for stochastic depth.
    """
    period: tuple[Variant, ...] = ()
    """Settings of the kinds of blocks, which repeat in this order along the stack, such as local and global attention.
    The last repetition may be incomplete. If empty, all blocks are alike.
    """

    def __post_init__(self):
        for field in ("norm", "position_embedding"):
            module = getattr(self, field)
            # Linen shares parameters between all uses of an instance, such as the default of a field.
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
        for variant in self.period:
            if variant.position_embedding is not None and not isinstance(variant.position_embedding, Rotary):
                kind = type(variant.position_embedding).__name__
                raise InputError(f"transformer.period: position_embedding={kind} has parameters; expected Rotary")
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"transformer.{field}={getattr(self, field)}: expected 0 or more, below 1")

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: BlockInputs | None = None, cache: Cache | None = None
    ) -> TransformerOutput:
        """Runs all blocks on `x`.

        Args:
          x: embeddings [batch, length, embed].
          inputs: attention mask, positions, encoder output and other inputs. If None, each token attends to all tokens.
          cache: keys and values of earlier tokens, for decoding. `x` then contains only the tokens that follow them. If
            None, `x` contains all tokens.
        """
        inputs = inputs or BlockInputs()
        if inputs.at is not None and _returns_more(inputs):
            raise ValueError("at: the last block's output would differ in shape from the other blocks'")
        blocks = tuple(self._block(kind) for kind in range(max(1, len(self.period))))
        if self.is_initializing():
            first = dataclasses.replace(inputs, mask=None, memory_mask=None, at=None, train=False)
            inits = [lambda key, block=block: block.init(key, x, first)["params"] for block in blocks]
            self.param("blocks", stack.initializer(inits, self.depth))
        stacked = nn.unbox(self.get_variable("params", "blocks"))
        if cache is not None:
            return self._decode(blocks, stacked, x, inputs, cache)
        x = sharding.constrain(x, "brd")
        if isinstance(inputs.memory, jax.Array):
            inputs = dataclasses.replace(inputs, memory=sharding.constrain(inputs.memory, "btd"))
        index = jnp.arange(x.shape[1])
        positions = index[None] if inputs.position_ids is None else inputs.position_ids
        placements = self._place(positions, index, index, inputs.placement)
        key = self.make_rng("dropout") if inputs.train else None
        shared = SharedInputs(dataclasses.replace(inputs, at=None, position_ids=None), tuple(placements), key)
        remat = "full" if self.remat == "offload" and not inputs.train else self.remat

        def run_block(shared, x, number, params, kind, at=None):
            inputs = dataclasses.replace(shared.inputs, at=at, placement=shared.placements[kind])
            state = BlockState(number / max(1, self.depth - 1), number == 0)
            rngs = None if shared.key is None else {"dropout": jax.random.fold_in(shared.key, number)}
            x = checkpoint_name(x, stack.BLOCK_INPUT) if remat == "offload" else x
            output = blocks[kind].apply({"params": params}, x, inputs, state, rngs=rngs)
            layer = output.hidden if inputs.return_layers else None
            return output.hidden, (output.attention, layer, output.means, output.memory_attention)

        schedule = self._schedule(inputs, x.shape[0])
        unroll = self.unroll or stack.default_unroll(self.depth, self.remat)
        in_loop = schedule is not None or (unroll == 1 and inputs.at is None)
        function = stack.rematerialised(run_block, remat, in_loop)
        if schedule is not None:
            x, means = self._run_pipeline(function, x, shared, stacked, schedule)
            return TransformerOutput(self._end(take(x, inputs.at), inputs.condition), means=means)
        function = functools.partial(function, shared)
        if inputs.at is None:
            x, kept = stack.run(function, x, stacked, len(blocks), unroll)
        else:
            before, last = stack.without_last(stacked)
            x, kept = stack.run(function, x, before, len(blocks), unroll)
            number = self.depth - 1
            x, part = function(x, jnp.asarray(number), last, number % len(blocks), inputs.at)
            kept = kept._replace(remaining=(*kept.remaining, part))
        attention, layers = kept.stacked(lambda part: part[0]), kept.stacked(lambda part: part[1])
        means, of_memory = kept.summed(lambda part: part[2]), kept.stacked(lambda part: part[3])
        return TransformerOutput(
            self._end(x, inputs.condition), attention, layers=layers, memory_attention=of_memory, means=means
        )

    def variant(self, number: int) -> BlockParts:
        """Returns the settings of the block with index `number`: those of its kind in `period`, and those of the stack
        for all others.
        """
        own = self.period[number % len(self.period)] if self.period else Variant()
        return BlockParts(
            own.attention or self.attention,
            own.mlp or self.mlp,
            own.position_embedding or self.position_embedding,
        )

    @property
    def kinds(self) -> tuple[BlockParts, ...]:
        """Settings of each kind of block in `period`. A single entry if `period` is empty, so that all blocks are
        alike.
        """
        return tuple(self.variant(number) for number in range(max(1, len(self.period))))

    def new_cache(self, rows: int, slots: int) -> Cache:
        """Returns an empty cache of keys and values for `rows` batch rows with at most `slots` tokens each."""
        groups, head_dim = self.attention.sizes(self.heads, self.width)
        empty = jnp.zeros((rows, groups, slots, head_dim), compute_dtype(self.dtype))
        layers = tuple(LayerCache(KeyValue(empty, empty)) for _ in range(self.depth))
        windows = tuple(self.variant(number).attention.window for number in range(self.depth))
        segments = jnp.zeros((rows, slots), jnp.int32)
        return Cache(layers, segments, jnp.zeros((), jnp.int32), windows=windows)

    def _schedule(self, inputs: BlockInputs, rows: int) -> Schedule | None:
        """Returns the schedule by which the current mesh runs the blocks in a pipeline. None if the blocks run without
        a pipeline: one after the other, each on all devices.

        Raises:
          InputError: If the mesh has a pipeline that cannot train this stack, or that cannot divide a batch of `rows`
            rows.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or self.is_initializing() or _returns_more(inputs):
            return None
        schedule = Schedule.of(mesh, sharding.config())
        if schedule.stages == 1:
            return None
        problem, last = None, self.variant(self.depth - 1).mlp
        if rows % schedule.micro_batches:
            problem = f"{rows} rows do not divide into {schedule.micro_batches} micro-batches"
        if self.depth % (schedule.parts * len(self.kinds)):
            problem = f"transformer.depth={self.depth} does not divide into {schedule.parts} parts"
        if inputs.at is not None and getattr(last, "mean_names", ()):
            problem = "the experts of the last block count only the predicted positions; expected another MLP there"
        if problem and inputs.train:
            raise InputError(f"mesh.pipeline={schedule.stages}: {problem}")
        return None if problem else schedule

    def _run_pipeline(self, function, x: jax.Array, shared: SharedInputs, stacked, schedule: Schedule):
        """Runs the blocks in the stages of a pipeline. Returns the output of the last block, and auxiliary losses and
        metrics as weighted means, keyed by name.

        Each micro-batch derives its dropout key from its index, so the dropout masks depend on the number of
        micro-batches.
        """
        depth = self.depth // schedule.parts
        unroll = self.unroll or stack.default_unroll(depth, self.remat)

        def run_stage(shared, x, blocks, first, micro_batch):
            if shared.key is not None:
                shared = shared._replace(key=jax.random.fold_in(shared.key, micro_batch))
            x, kept = stack.run(functools.partial(function, shared), x, blocks, len(self.kinds), unroll, first)
            return x, kept.summed(lambda part: part[2])

        return pipeline.run(run_stage, x, shared.with_batch_axis(), stacked, schedule)

    def _decode(self, blocks, stacked, x: jax.Array, inputs: BlockInputs, cache: Cache) -> TransformerOutput:
        """Runs the blocks during decoding, each with its own keys and values in `cache`. Returns the output for the new
        tokens `x`, and the updated cache in its field `cache`.
        """
        slots = cache.used + jnp.arange(x.shape[1])
        segments = jax.lax.dynamic_slice_in_dim(cache.segments, cache.used, x.shape[1], axis=1)
        order = None if inputs.mask is None else inputs.mask.query_order
        order = slots[None] if order is None else cache.used + order
        memory_mask = None
        if cache.memory_segments is not None:
            memory_mask = Mask.of_segments(jnp.ones_like(segments), cache.memory_segments)
        positions = slots[None] if inputs.position_ids is None else inputs.position_ids
        keys = jnp.arange(cache.segments.shape[1])
        placements = self._place(positions, slots, keys, inputs.placement)
        layers, memories = [], []
        for number, params in enumerate(stack.unstacked(stacked)):
            kind, layer = number % len(blocks), cache.layers[number]
            block_inputs = dataclasses.replace(
                inputs,
                mask=cache.mask(layer, segments, order, blocks[kind].attention.window),
                placement=placements[kind],
                memory=inputs.memory if cache.memory is None else cache.memory[number],
                memory_mask=memory_mask,
            )
            state = BlockState(number / max(1, self.depth - 1), number == 0, layer, cache.used)
            output = blocks[kind].apply({"params": params}, x, block_inputs, state)
            x = output.hidden
            layers.append(output.cache)
            memories.append(output.memory)
        memories = None if memories[0] is None else tuple(memories)
        cache = dataclasses.replace(cache, layers=tuple(layers), used=cache.used + x.shape[1], memory=memories)
        return TransformerOutput(self._end(x, inputs.condition), cache=cache)

    def _place(self, positions, query_index, key_index, given: Placement | None) -> list[Placement | None]:
        """Computes the rotations or biases by which self-attention uses positions, one entry per kind of block. An
        entry is None if there are none.

        Args:
          positions: positions of the tokens, integers [batch or 1, length].
          query_index: indices of the queries in the sequence.
          key_index: indices of the keys in the sequence.
          given: rotations or biases from the caller of the stack, which are combined with those of the position scheme.
            None if there are none.
        """
        _, head_dim = self.attention.sizes(self.heads, self.width)

        def place(scheme):
            return None if scheme is None else scheme(positions, query_index, key_index, self.heads, head_dim)

        common = place(self.position_embedding)
        own = [variant.position_embedding for variant in self.period] or [None]
        found = [common if scheme is None else place(scheme) for scheme in own]
        if given is None:
            return found
        return [given if placement is None else placement.merged(given) for placement in found]

    def _end(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        return normalise(self.norm, x, condition) if self.last_norm and self.norm_position != "after" else x

    def _block(self, kind: int) -> Block:
        variant = self.variant(kind)
        return Block(
            heads=self.heads,
            attention=fresh(variant.attention),
            mlp=fresh(variant.mlp),
            norm=fresh(self.norm),
            norm_position=self.norm_position,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            dtype=self.dtype,
            residual=None if self.residual is None else fresh(self.residual),
            first_norm=self.first_norm,
            parent=None,
        )


def _returns_more(inputs: BlockInputs) -> bool:
    """Returns whether the caller requests attention weights or the outputs of all blocks."""
    return inputs.return_attention or inputs.return_layers or inputs.return_memory_attention


def fresh(module: nn.Module) -> nn.Module:
    """Returns a copy of a module that does not belong to a parent. If several modules used the same instance, Linen
    would share its parameters between them.
    """
    return module.clone(parent=None, name=None)


def separate(module: nn.Module, field: str, other: str) -> None:
    """Replaces the stack in the field `field` by a copy if the field `other` contains the same instance. Otherwise,
    Linen would share the parameters of the two stacks.

    To be called in the `__post_init__` of a module, before `super().__post_init__()`.
    """
    if (stack := getattr(module, other)) is not None and getattr(module, field) is stack:
        object.__setattr__(module, field, fresh(stack))


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [i for i in range(1, number + 1) if number % i == 0]
    return min(divisors, key=lambda divisor: abs(divisor - near))
