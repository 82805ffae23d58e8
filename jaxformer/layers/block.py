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
"""Where a block applies norms. `before`: before each layer, and at the end of the stack (pre-norm, stable for deep
stacks). `after`: after each residual sum (post-norm, Vaswani et al. 2017). `both`: before and after each layer, and at
the end of the stack (Gemma 2 and 3).
"""


@flax.struct.dataclass
class BlockInputs:
    """Inputs of a stack and its blocks other than the vectors `x`."""

    mask: Mask | None = None
    """Mask of the tokens that each token attends to. If None, each token attends to all tokens. With a cache, only the
    order numbers of the mask are used (see `Mask.query_order`), and None means causal.
    """
    position_ids: jax.Array | None = None
    """Positions of the tokens, integers [batch, length], for a position scheme such as rotary embeddings. Defaults to
    0, 1, 2, ...
    """
    memory: jax.Array | KeyValue | None = None
    """Vectors that cross-attention attends to, [batch, keys, embed], or their keys and values. With a cache, they are
    only needed in the first call.
    """
    memory_mask: Mask | None = None
    """Mask of the memory vectors that each token attends to."""
    placement: Placement | None = None
    """Rotations or biases to apply in self-attention, in addition to those of the stack's own position scheme."""
    memory_placement: Placement | None = None
    """Rotations or biases to apply in cross-attention to the queries and to the keys of the memory."""
    condition: jax.Array | None = None
    """Vector that norms and residual branches depend on, [batch, size], such as the time and class of a diffusion
    model.
    """
    at: jax.Array | None = None
    """Positions whose output is needed, integers [batch, predictions]. The last block skips all other positions. For
    the 15% masked tokens of BERT, this saves most of its computation.
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
    """Position of a block in its stack and, during decoding, the cache of the block."""

    depth_fraction: jax.Array | float = 1.0
    """Relative depth of the block, from 0 for the first block to 1 for the last."""
    is_first: jax.Array | bool = False
    """Whether this is the first block."""
    cache: LayerCache | None = None
    """Keys and values of earlier tokens for self-attention. None without a cache."""
    used: jax.Array | int = 0
    """Number of tokens in the cache before this call, scalar."""


@flax.struct.dataclass
class BlockOutput:
    """Output vectors of a Transformer block and, depending on the inputs, attention weights and caches."""

    hidden: jax.Array
    """Output vectors, [batch, length, embed], or [batch, predictions, embed] at selected positions."""
    attention: jax.Array | None
    """Weights of self-attention, float32 [batch, heads, queries, keys]. None unless requested."""
    cache: LayerCache | None
    """Cache that includes the new tokens. None if there was no cache."""
    memory: KeyValue | None
    """Keys and values of cross-attention. None without a memory."""
    memory_attention: jax.Array | None
    """Weights of cross-attention, float32 [batch, heads, queries, keys]. None unless requested."""
    means: dict[str, Mean]
    """Auxiliary losses and metrics of the block, such as the load of experts, as weighted means keyed by name."""


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention if there is a memory, and an MLP.

    Each layer is followed by dropout and a residual connection. `norm_position` sets where norms are applied.
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
        """Computes the output of the block for x [batch, length, embed]."""
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
        """Prepares the input of a layer: the residual stream, normalized if norms are applied before layers.

        Also sets the sharding: within layers, positions may be split over fewer devices than in the residual stream.

        Args:
          x: residual stream.
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
        """Adds the output of a layer to the residual stream."""
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
        """Computes self-attention. Returns its output at the selected positions, its weights and its cache."""
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
        """Computes cross-attention."""
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
    """Selects the vectors at some positions.

    Args:
      x: vectors, [batch, length, embed].
      at: positions, integers [batch, predictions]. If None, `x` is returned.

    Returns:
      Selected vectors, [batch, predictions, embed].
    """
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)
