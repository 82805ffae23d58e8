"""Attention pooling: one vector of a sequence, by the attention of a learned query (Zhai et al. 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.attention import Attention, AttentionInputs
from jaxformer.layers.linear import DType, compute_dtype, truncated_normal
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.parallel import metadata


class AttentionPooling(nn.Module):
    """A learned query attends to all tokens; a residual MLP follows: [b, t, d] → [b, d]."""

    heads: int = 12
    """Attention heads; they divide the width."""
    mlp: nn.Module = Mlp()
    """The feed-forward network."""
    norm: nn.Module = LayerNorm()
    """The norm of what the feed-forward network reads."""
    dtype: DType = "auto"
    """The type to compute in."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query = self.param("query", metadata.with_axes(truncated_normal(0.02), "d"), (width,))
        query = jnp.broadcast_to(query.astype(compute_dtype(self.dtype)), (x.shape[0], 1, width))
        attended = Attention(name="attention")(query, AttentionInputs(memory=x), heads=self.heads, dtype=self.dtype)
        y = attended.output
        mixed, _ = self.mlp(self.norm(y), self.dtype)
        return (y + mixed)[:, 0]
