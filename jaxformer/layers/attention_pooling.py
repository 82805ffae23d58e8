"""Attention pooling: reduces a sequence to one vector by the attention of a learned query (Zhai et al. 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.attention import Attention, AttentionInputs
from jaxformer.layers.linear import DType, compute_dtype, truncated_normal
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.parallel import metadata


class AttentionPooling(nn.Module):
    """Pools the vectors of a sequence to one vector: a learned query attends to the sequence, and an MLP with a
    residual connection follows. [batch, length, embed] → [batch, embed].
    """

    heads: int = 12
    """Number of attention heads. The vector size must be divisible by it."""
    mlp: nn.Module = Mlp()
    """Feed-forward network after the attention."""
    norm: nn.Module = LayerNorm()
    """Normalization of the input of the feed-forward network."""
    dtype: DType = "auto"
    """Data type of the computation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query = self.param("query", metadata.with_axes(truncated_normal(0.02), "d"), (width,))
        query = jnp.broadcast_to(query.astype(compute_dtype(self.dtype)), (x.shape[0], 1, width))
        attended = Attention(name="attention")(query, AttentionInputs(memory=x), heads=self.heads, dtype=self.dtype)
        y = attended.output
        mixed, _ = self.mlp(self.norm(y), self.dtype)
        return (y + mixed)[:, 0]
