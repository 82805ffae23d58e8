"""Linear maps whose einsum names every axis, and the numbers' types."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.parallel import metadata, sharding

DType = Literal["auto", "float32", "bfloat16"]
"""The type to compute in; auto is bfloat16 on accelerators and float32 on CPU. Parameters are float32 always."""

truncated_normal = nn.initializers.truncated_normal


def compute_dtype(dtype: DType) -> jnp.dtype:
    """Returns the jax dtype of `dtype` on the platform that the program is compiled for."""
    if dtype == "auto":
        dtype = "float32" if sharding.platform() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


class Linear(nn.Module):
    """`y = x · kernel + bias`, written as an einsum such as `btd,dhk->bthk`.

    The kernel's axes are the letters after the comma, named by the glossary in `sharding`. Its contracted axes are
    the last ones of `x` and its first ones; its other axes, which are also the bias's, end the output.
    """

    equation: str
    """Input axes, kernel axes and output axes."""
    shape: Sequence[int]
    """The kernel's shape."""
    bias: bool = True
    """Whether to add a bias."""
    dtype: DType = "auto"
    """The type to compute in."""
    init_scale: float = 1.0
    """Factor of the initial kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, kernel_axes, outputs = self.equation.replace("->", ",").split(",")
        contracted = sum(axis in inputs for axis in kernel_axes)
        summed, kept = kernel_axes[:contracted], kernel_axes[contracted:]
        if not inputs.endswith(summed) or outputs != inputs.removesuffix(summed) + kept:
            raise ValueError(f"{self.equation!r}: expected an equation such as 'btd,dhk->bthk'")
        rows = int(np.prod(self.shape[:contracted]))
        # BERT's 0.02 at its width of 768, and as much of the input's size at any other.
        init = truncated_normal(self.init_scale * (3 * rows) ** -0.5)
        kernel = self.param("kernel", metadata.with_axes(init, kernel_axes, contracted), tuple(self.shape))
        dtype = compute_dtype(self.dtype)
        # One matrix product over all tokens at once: with batch and position apart, XLA on CPU turns the kernel's
        # gradient into a strided transposing copy that costs more than the product itself.
        tokens, features = x.shape[: x.ndim - contracted], self.shape[contracted:]
        y = x.astype(dtype).reshape(-1, rows) @ kernel.astype(dtype).reshape(rows, -1)
        if self.bias:
            bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, kept), tuple(features))
            y = y + bias.astype(dtype).reshape(-1)
        return y.reshape(*tokens, *features)


@flax.struct.dataclass
class LMHead:
    """The map from hidden vectors to a vocabulary's logits: `x · tableᵀ + bias`."""

    table: jax.Array
    """[v, d], float32; the token embeddings, where the two are tied."""
    bias: jax.Array | None = None
    """[v], float32."""

    def logits(self, x: jax.Array) -> jax.Array:
        """float32 [..., v] of vectors [..., d]."""
        table = self.table.astype(x.dtype)
        logits = jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias
