"""The one block that every family is made of."""

from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.attention import AttentionInputs
from jaxformer.layers.cache import KeyValue, LayerCache
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType
from jaxformer.layers.masks import Mask
from jaxformer.layers.positions import Placement
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding

NormPosition = Literal["before", "after", "both"]
"""Norms before each layer and at the end of the stack (pre-norm, stable when deep), after each residual sum (post-norm,
Vaswani et al. 2017), or before and after each layer and at the end (Gemma 2 and 3)."""


@flax.struct.dataclass
class BlockInputs:
    """The inputs of a stack and its blocks besides `x`."""

    mask: Mask | None = None
    """Which token each token sees; None for every. With a cache its order alone counts, and None is causal."""
    position_ids: jax.Array | None = None
    """Integers [b, t], for a position scheme. Default: 0, 1, 2, ..."""
    memory: jax.Array | KeyValue | None = None
    """The vectors that cross-attention attends to, [b, s, d]; with a cache needed once only."""
    memory_mask: Mask | None = None
    """Which part of the memory each token sees."""
    placement: Placement | None = None
    """Applied in self-attention in addition to the stack's own position scheme."""
    memory_placement: Placement | None = None
    """Applied in cross-attention to queries, and to the keys of the memory."""
    condition: jax.Array | None = None
    """[b, c]: what norms and residual branches are conditioned on, such as a diffusion's time and class."""
    at: jax.Array | None = None
    """Integers [b, m]: the positions whose output is wanted. The last block leaves the others out, which with BERT's
    15% saves most of it."""
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to drop out; needs the rng stream `dropout`."""
    return_attention: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the weights of self-attention; not together with `at`."""
    return_layers: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the output of every block; not together with `at`."""


@flax.struct.dataclass
class BlockState:
    """The index of a block in its stack, and its cache in decoding."""

    depth_fraction: jax.Array | float = 1.0
    """From 0 for the first block to 1 for the last."""
    is_first: jax.Array | bool = False
    """Whether the block is the first."""
    cache: LayerCache | None = None
    """Keys and values of earlier tokens."""
    used: jax.Array | None = None
    """Scalar: tokens in the cache."""


@flax.struct.dataclass
class BlockOutput:
    """The output of a block."""

    hidden: jax.Array
    """[b, t, d], or [b, m, d] at some positions."""
    attention: jax.Array | None
    """Weights of self-attention, float32 [b, h, t, s], where they were asked for."""
    cache: LayerCache | None
    """The cache with the new tokens, where there was one."""
    memory: KeyValue | None
    """Keys and values of cross-attention."""
    means: dict[str, Mean]
    """Auxiliary means by name, such as the load of experts."""


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, and MLP: each with dropout, a residual connection and
    norms where `norm_position` has them."""

    heads: int
    attention: nn.Module
    mlp: nn.Module
    norm: nn.Module
    norm_position: NormPosition
    dropout: float
    attention_dropout: float
    dtype: DType
    residual: nn.Module | None = None
    first_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, inputs: BlockInputs | None = None, state: BlockState | None = None) -> BlockOutput:
        """Maps x [b, t, d] to the block's output."""
        inputs, state = inputs or BlockInputs(), state or BlockState()
        y, weights, cache = self._attend(self._before(x, "attention", inputs, state), inputs, state)
        x = self._add(take(x, inputs.at), y, "attention", inputs, state)
        memory = None
        if inputs.memory is not None:
            y, memory = self._attend_memory(self._before(x, "cross_attention", inputs, state), inputs)
            x = self._add(x, y, "cross_attention", inputs, state)
        y, means = self.mlp(self._before(x, "mlp", inputs, state), self.dtype, inputs.train)
        x = self._add(x, y, "mlp", inputs, state)
        return BlockOutput(sharding.constrain(x, "btd"), weights, cache, memory, means)

    def _before(self, x: jax.Array, name: str, inputs: BlockInputs, state: BlockState) -> jax.Array:
        """The input of a layer: the residual stream, normalised if norms come first."""
        if self.norm_position == "after":
            return x
        y = normalise(self.norm.copy(name=f"{name}_norm"), x, inputs.condition)
        if self.first_norm or name != "attention":
            return y
        return jnp.where(state.is_first, x, y)

    def _add(self, x: jax.Array, y: jax.Array, name: str, inputs: BlockInputs, state: BlockState) -> jax.Array:
        """The residual stream with a layer's output."""
        if self.norm_position == "both":
            y = normalise(self.norm.copy(name=f"{name}_post_norm"), y, inputs.condition)
        if self.residual is not None:
            y = self._branch(f"{name}_residual", y, inputs, state)
        x = x + Dropout(self.dropout)(y, inputs.train)
        if self.norm_position != "after":
            return x
        return normalise(self.norm.copy(name=f"{name}_norm"), x, inputs.condition)

    def _branch(self, name: str, y: jax.Array, inputs: BlockInputs, state: BlockState) -> jax.Array:
        branch = self.residual.copy(name=name)
        if inputs.condition is None:
            return branch(y, state.depth_fraction, inputs.train)
        return branch(y, state.depth_fraction, inputs.train, inputs.condition)

    def _attend(self, x: jax.Array, inputs: BlockInputs, state: BlockState):
        """The output of self-attention at the positions wanted, its weights and its cache."""
        mask, placement, window = inputs.mask, inputs.placement, self.attention.window
        if window is not None and state.cache is None:
            mask = (mask or Mask()).windowed(window, x.shape[1])
        given = AttentionInputs(
            mask=mask,
            placement=placement,
            cache=state.cache,
            used=state.used,
            train=inputs.train,
            return_weights=inputs.return_attention,
        )
        query = x
        if inputs.at is not None:
            query = take(x, inputs.at)
            placement = placement and placement.at(inputs.at)
            given = given.replace(memory=x, mask=mask and mask.at(inputs.at), placement=placement)
        attended = self.attention(query, given, heads=self.heads, dropout=self.attention_dropout, dtype=self.dtype)
        return attended.output, attended.weights, attended.cache

    def _attend_memory(self, x: jax.Array, inputs: BlockInputs) -> tuple[jax.Array, KeyValue]:
        """The output of cross-attention, and the keys and values of the memory."""
        mask, placement, at = inputs.memory_mask, inputs.memory_placement, inputs.at
        if at is not None:
            mask, placement = mask and mask.at(at), placement and placement.at(at)
        given = AttentionInputs(memory=inputs.memory, mask=mask, placement=placement, train=inputs.train)
        attention = self.attention.copy(name="cross_attention")
        attended = attention(x, given, heads=self.heads, dropout=self.attention_dropout, dtype=self.dtype)
        return attended.output, attended.keys


def normalise(norm: nn.Module, x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """`x` normalised; a norm in a conditioned stack takes the condition too."""
    return norm(x) if condition is None else norm(x, condition)


def take(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """The vectors of `x` [b, t, d] at the positions `at` [b, m]: [b, m, d]; all of them where `at` is None."""
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)
