"""Transformer block that all model families share."""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.attention import AttentionInputs, AttentionOutput
from jaxformer.layers.cache import KeyValue, LayerCache
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType
from jaxformer.layers.masks import Mask, Tokens
from jaxformer.layers.positions import Placement
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding

NormPosition = Literal["before", "after", "both"]
"""Where a Transformer block normalizes. `before`: the input of each layer, and the output of the last block (pre-norm,
stable for deep models). `after`: the sum of each layer's output and the residual stream (post-norm, Vaswani et al.
2017). `both`: the input and the output of each layer, and the output of the last block (Gemma 2 and 3).
"""


@flax.struct.dataclass
class BlockInputs:
    """Inputs of a stack of Transformer blocks, and of each block, other than the vectors `x`."""

    mask: Mask | None = None
    """Attention mask of self-attention. If None, each token attends to all tokens, or, with a cache, to itself and all
    earlier tokens. With a cache, only `Mask.query_order` of the mask is used.
    """
    position_ids: jax.Array | None = None
    """Positions of the tokens, integers [batch, length], for a position scheme such as rotary embeddings. Defaults to
    0, 1, 2, ...
    """
    memory: jax.Array | KeyValue | None = None
    """Vectors that cross-attention attends to, such as encoder outputs, [batch, keys, embed], or their keys and values.
    If None, there is no cross-attention, or its keys and values are in the cache from an earlier call.
    """
    memory_mask: Mask | None = None
    """Mask of cross-attention: the memory vectors that each token may attend to. If None, each token attends to all of
    them.
    """
    placement: Placement | None = None
    """Position information for self-attention, such as rotations of queries and keys, in addition to the position
    scheme of the stack itself.
    """
    memory_placement: Placement | None = None
    """Position information for cross-attention, such as vectors to add to the queries and to the keys of the memory."""
    condition: jax.Array | None = None
    """Vector that norms and residual branches depend on, [batch, size], such as the embedding of the time and class in
    a diffusion model. None for other models.
    """
    at: jax.Array | None = None
    """Positions whose output is needed, integers [batch, predictions]. The last block computes only these, which saves
    most of its computation in BERT pretraining, where 15% of the tokens are masked. If None, the output of all
    positions is computed.
    """
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to apply dropout. Requires the rng stream `dropout`."""
    return_attention: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the weights of self-attention. Cannot be combined with `at`."""
    return_layers: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the output of every block. Cannot be combined with `at`."""
    return_memory_attention: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to return the weights of cross-attention. Cannot be combined with `at`."""


@flax.struct.dataclass
class BlockState:
    """Arguments of a block that differ between the blocks of a stack: its depth and, during decoding, its cache."""

    depth_fraction: jax.Array | float = 1.0
    """Relative depth of the block, from 0 for the first block to 1 for the last."""
    is_first: jax.Array | bool = False
    """Whether this is the first block of the stack."""
    cache: LayerCache | None = None
    """Keys and values of earlier tokens for self-attention, during decoding. None if the stack is called without a
    cache.
    """
    used: jax.Array | int = 0
    """Number of tokens in the cache before this call, scalar."""


@flax.struct.dataclass
class BlockOutput:
    """Outputs of a Transformer block: vectors and, depending on the inputs, attention weights and caches."""

    hidden: jax.Array
    """Output vectors, [batch, length, embed]. If positions were selected by `BlockInputs.at`, [batch, predictions,
    embed].
    """
    attention: jax.Array | None
    """Weights of self-attention, float32 [batch, heads, queries, keys]. None unless `BlockInputs.return_attention` is
    set.
    """
    cache: LayerCache | None
    """Updated cache, which includes the new tokens. None if the block was called without a cache."""
    memory: KeyValue | None
    """Keys and values of cross-attention, which later calls can use instead of the memory. None without
    cross-attention.
    """
    memory_attention: jax.Array | None
    """Weights of cross-attention, float32 [batch, heads, queries, keys]. None unless
    `BlockInputs.return_memory_attention` is set.
    """
    means: dict[str, Mean]
    """Auxiliary losses and metrics of the block, such as the load of its experts, keyed by name. Each `Mean` is a sum
    and the weight by which it is to be divided.
    """


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention if `BlockInputs.memory` is given, and an MLP.

    The output of each of these layers is added to the residual stream after dropout. `norm_position` determines where
    norms are applied.
    """

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
        """Computes the output of the block for input vectors x [batch, length, embed]."""
        inputs, state = inputs or BlockInputs(), state or BlockState()
        y, weights, cache = self._attend(self._before(x, "attention", inputs, state), inputs, state)
        x = self._add(take(x, inputs.at), y, "attention", inputs, state)
        memory, memory_weights = None, None
        if inputs.memory is not None:
            attended = self._attend_memory(self._before(x, "cross_attention", inputs, state), inputs)
            memory, memory_weights = attended.keys, attended.weights
            x = self._add(x, attended.output, "cross_attention", inputs, state)
        tokens = Tokens(None if inputs.mask is None else inputs.mask.query_segments, inputs.at)
        y, means = self.mlp(self._before(x, "mlp", inputs, state), self.dtype, inputs.train, tokens)
        x = self._add(x, y, "mlp", inputs, state)
        return BlockOutput(sharding.constrain(x, "brd"), weights, cache, memory, memory_weights, means)

    def _before(self, x: jax.Array, name: str, inputs: BlockInputs, state: BlockState) -> jax.Array:
        """Returns the input of a layer: the residual stream, normalized unless `norm_position` is `after`.

        Also sets the sharding: within layers, positions may be split over fewer devices than in the residual stream.

        Args:
          x: residual stream, [batch, length, embed].
          name: name of the layer, `attention`, `cross_attention` or `mlp`.
          inputs: inputs of the block.
          state: state of the block.
        """
        if self.norm_position == "after":
            return sharding.constrain(x, "btd")
        y = normalise(self.norm.copy(name=f"{name}_norm"), x, inputs.condition)
        if not self.first_norm and name == "attention":
            y = jnp.where(state.is_first, x, y)
        return sharding.constrain(y, "btd")

    def _add(self, x: jax.Array, y: jax.Array, name: str, inputs: BlockInputs, state: BlockState) -> jax.Array:
        """Adds the output `y` of the layer `name` to the residual stream `x`. Before that, applies a norm, LayerScale
        or stochastic depth, and dropout; after that, a post-norm, if the block has them.
        """
        y = sharding.constrain(y, "brd")
        if self.norm_position == "both":
            y = normalise(self.norm.copy(name=f"{name}_post_norm"), y, inputs.condition)
        if self.residual is not None:
            y = _scaled(self.residual.copy(name=f"{name}_residual"), y, inputs, state)
        x = x + Dropout(self.dropout)(y, inputs.train)
        if self.norm_position != "after":
            return x
        return normalise(self.norm.copy(name=f"{name}_norm"), x, inputs.condition)

    def _attend(self, x: jax.Array, inputs: BlockInputs, state: BlockState):
        """Computes self-attention. Returns its output (at the positions `inputs.at` if given), its weights if
        requested, and the updated cache or None.
        """
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
            given = dataclasses.replace(given, memory=x, mask=mask and mask.at(inputs.at), placement=placement)
        attended = self.attention(query, given, heads=self.heads, dropout=self.attention_dropout, dtype=self.dtype)
        return attended.output, attended.weights, attended.cache

    def _attend_memory(self, x: jax.Array, inputs: BlockInputs) -> AttentionOutput:
        """Computes cross-attention of the vectors `x` [batch, queries, embed] to `inputs.memory`. If `inputs.at` is
        given, `x` contains only these positions, and the mask is reduced to them.
        """
        mask, placement, at = inputs.memory_mask, inputs.memory_placement, inputs.at
        if at is not None:
            mask, placement = mask and mask.at(at), placement and placement.at(at)
        given = AttentionInputs(
            memory=inputs.memory,
            mask=mask,
            placement=placement,
            train=inputs.train,
            return_weights=inputs.return_memory_attention,
        )
        attention = self.attention.copy(name="cross_attention")
        return attention(x, given, heads=self.heads, dropout=self.attention_dropout, dtype=self.dtype)


def _scaled(residual: nn.Module, y: jax.Array, inputs: BlockInputs, state: BlockState) -> jax.Array:
    """Applies the residual module (such as LayerScale or stochastic depth) to the output `y` of a layer, before it is
    added to the residual stream.
    """
    if inputs.condition is None:
        return residual(y, state.depth_fraction, inputs.train)
    return residual(y, state.depth_fraction, inputs.train, inputs.condition)


def normalise(norm: nn.Module, x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """Applies the module `norm` to `x`. If there is a condition, such as the time of a diffusion model, it is the
    second argument of the norm.
    """
    return norm(x) if condition is None else norm(x, condition)


def take(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """Selects the vectors at the positions `at`.

    Args:
      x: vectors, [batch, length, embed].
      at: positions, integers [batch, predictions]. If None, `x` is returned.

    Returns:
      Selected vectors, [batch, predictions, embed].
    """
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)
