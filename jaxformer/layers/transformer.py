"""The one block that every family is made of, and the stack of it."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import sharding
from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """Self-attention and MLP, each with dropout, a residual connection and a norm before or after."""

    heads: int
    mlp: nn.Module
    norm: nn.Module
    norm_position: Literal["before", "after"]
    dropout: float
    attention_dropout: float
    dtype: DType

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False, at: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Maps x [b, t, d] to the block's output, [b, t, d], and its attention weights, [b, h, t, s].

        With `at`, integers [b, m], both are computed at these positions alone: [b, m, d] and [b, h, m, s].
        """
        attention = Attention(self.heads, self.attention_dropout, dtype=self.dtype, name="attention")
        attention_norm, mlp_norm = self.norm.copy(name="attention_norm"), self.norm.copy(name="mlp_norm")
        drop = Dropout(self.dropout)
        mask = mask if mask is None or at is None else jnp.take_along_axis(mask, at[:, None, :, None], axis=2)
        if self.norm_position == "before":
            memory = attention_norm(x)
            y, weights = attention(take(memory, at), memory, mask, train)
            x = take(x, at) + drop(y, train)
            x = x + drop(self.mlp(mlp_norm(x), self.dtype), train)
        else:
            y, weights = attention(take(x, at), x, mask, train)
            x = attention_norm(take(x, at) + drop(y, train))
            x = mlp_norm(x + drop(self.mlp(x, self.dtype), train))
        return sharding.constrain(x, "btd"), weights


class Transformer(nn.Module):
    """A stack of blocks: the hyperparameters that the families share (Vaswani et al. 2017)."""

    width: int = 768
    """Size of the residual stream."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; they divide the width."""
    mlp: nn.Module = Mlp()
    """The feed-forward network of each block."""
    norm: nn.Module = LayerNorm()
    """The normalisation, two in each block."""
    norm_position: Literal["before", "after"] = "before"
    """Norm before each layer (pre-norm, stable when deep), or after its residual sum (post-norm, the paper's)."""
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

    def __post_init__(self):
        super().__post_init__()
        for field in ("width", "depth", "heads", "unroll"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"transformer.{field}={value}: expected at least 1")
        if self.width % self.heads:
            raise InputError(
                f"transformer.heads={self.heads} does not divide transformer.width={self.width}: "
                f"{_nearest_divisor(self.width, self.heads)} would"
            )
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"transformer.{field}={getattr(self, field)}: expected 0 or more, below 1")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        return_attention: bool = False,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs all blocks.

        Args:
          x: embeddings [b, t, d].
          mask: boolean [b, 1, t, s], True where a query may look; None for everywhere.
          train: whether to drop out; needs the rng stream `dropout`.
          return_attention: whether to return the attention weights too; not together with `at`.
          at: integers [b, m]: the positions whose output is wanted. The last block leaves the others out, which
            with BERT's 15% saves most of it.

        Returns:
          The last block's output, [b, t, d] or [b, m, d], and the weights, float32 [l, b, h, t, s], or None.
        """
        if return_attention and at is not None:
            raise ValueError("return_attention and at: the last block's weights would have another shape")
        block = self._block()
        stacked = self.param("blocks", _stacked(block.init, self.depth), x)
        key = self.make_rng("dropout") if train else None

        def layer(x, numbered, at=None):
            number, params = numbered
            rngs = {"dropout": jax.random.fold_in(key, number)} if train else None
            x, weights = block.apply({"params": params}, x, mask, train, at, rngs=rngs)
            return x, weights if return_attention else None

        # Unrolled, the compiler computes all blocks again at once, and saves no memory.
        fast = jax.default_backend() == "cpu" and self.remat == "none"
        unroll = self.unroll or (self.depth if fast else 1)
        if self.remat != "none":
            # Outside a loop the compiler would see that something is computed twice, and keep it instead.
            alone = unroll > 1 or at is not None
            layer = jax.checkpoint(layer, prevent_cse=alone, policy=REMAT_POLICIES[self.remat])
        blocks = jnp.arange(self.depth), stacked
        if at is None:
            return jax.lax.scan(layer, x, blocks, unroll=min(unroll, self.depth))
        first, last = jax.tree.map(lambda array: array[:-1], blocks), jax.tree.map(lambda array: array[-1], blocks)
        x, _ = jax.lax.scan(layer, x, first, unroll=max(1, min(unroll, self.depth - 1)))
        return layer(x, last, at)

    def _block(self) -> Block:
        fields = (self.norm_position, self.dropout, self.attention_dropout, self.dtype)
        return Block(self.heads, fresh(self.mlp), fresh(self.norm), *fields, parent=None)


def take(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """The vectors of `x` [b, t, d] at the positions `at` [b, m]: [b, m, d]; all of them where `at` is None."""
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)


def fresh(module: nn.Module) -> nn.Module:
    """The same hyperparameters with no parameters yet: whoever calls a module that others call shares theirs."""
    return module.clone(parent=None, name=None)


def _stacked(init, depth: int):
    """An initializer of the parameters of `depth` blocks, with a leading layer axis: the layout is one, however run."""

    def stacked(key, x):
        params = jax.vmap(lambda key: init(key, x)["params"])(jax.random.split(key, depth))
        return jax.tree.map(lambda box: box.add_axis(0, {"letter": "l"}), params, is_leaf=sharding.is_boxed)

    return stacked


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [i for i in range(1, number + 1) if number % i == 0]
    return min(divisors, key=lambda divisor: abs(divisor - near))
