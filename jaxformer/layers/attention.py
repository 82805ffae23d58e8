"""Scaled dot-product attention and the layer around it (Vaswani et al. 2017, §3.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, Linear


def attention_weights(query_bthk: jax.Array, key_bshk: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`softmax(query · key / sqrt(k))`, in float32.

    Args:
      query_bthk: queries.
      key_bshk: keys.
      mask: boolean, broadcastable to [b, h, t, s], True where a query may look; None for everywhere.

    Returns:
      float32 [b, h, t, s]; each row sums to 1.
    """
    scale = query_bthk.shape[-1] ** -0.5
    scores = jnp.einsum("bthk,bshk->bhts", query_bthk * scale, key_bshk, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory`, or to itself: [b, t, d] → [b, t, d]."""

    heads: int
    """Number of heads; it divides the width."""
    dropout: float = 0.0
    """Rate of dropout on the attention weights."""
    bias: bool = True
    """Whether the four maps have biases."""
    dtype: DType = "auto"
    """What to compute in."""

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, mask: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the layer's output [b, t, d] and its attention weights [b, h, t, s] before dropout."""
        memory = x if memory is None else memory
        width, head_dim = x.shape[-1], x.shape[-1] // self.heads

        def project(name, inputs):
            equation, shape = "btd,dhk->bthk", (width, self.heads, head_dim)
            return Linear(equation, shape, self.bias, self.dtype, name=name)(inputs)

        query, key, value = project("query", x), project("key", memory), project("value", memory)
        weights = attention_weights(query, key, mask)
        dropped = Dropout(self.dropout)(weights, train).astype(value.dtype)
        mixed = jnp.einsum("bhts,bshk->bthk", dropped, value)
        output = Linear("bthk,hkd->btd", (self.heads, head_dim, width), self.bias, self.dtype, name="output")
        return output(mixed), weights
