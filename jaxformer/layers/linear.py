"""Linear layers described by an einsum equation with one letter per axis, and the data types of computations."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers import products
from jaxformer.parallel import metadata, sharding

DType = Literal["auto", "float32", "bfloat16", "bfloat16_products", "int8", "float8"]
"""Data type of a computation. `auto` is bfloat16 on accelerators and float32 on CPU. Parameters are always float32.

With `bfloat16_products`, activations are float32, and the inputs of large products are rounded to bfloat16. With `int8`
and `float8`, the inputs of linear layers are quantized (extra `quantize`), and the rest is computed as with `auto`.
"""

truncated_normal = nn.initializers.truncated_normal


def compute_dtype(dtype: DType) -> jnp.dtype:
    """Returns the JAX data type for a `DType`. `auto` depends on the platform that the program is compiled for."""
    if dtype == products.ROUNDED:
        return jnp.dtype("float32")
    if dtype == "auto" or dtype in products.TYPES:
        dtype = "float32" if sharding.platform() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


class Linear(nn.Module):
    """Linear layer `y = x · kernel + bias`, described by an einsum equation such as `btd,dhk->bthk`.

    The letters after the comma are the axes of the kernel (see `sharding.AXES` for their meaning). The contracted axes
    are the last axes of `x` and the first axes of the kernel. The other kernel axes are also the axes of the bias, and
    the last axes of the output.
    """

    equation: str
    """Einsum equation with a letter for each axis of input, kernel and output."""
    shape: Sequence[int]
    """Shape of the kernel, with the axes of the equation's second operand."""
    bias: bool = True
    """Whether to add a bias."""
    dtype: DType = "auto"
    """Data type of the computation."""
    init_scale: float = 1.0
    """Number by which the random initial kernel is multiplied."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, kernel_axes, outputs = self.equation.replace("->", ",").split(",")
        contracted = sum(axis in inputs for axis in kernel_axes)
        summed, kept = kernel_axes[:contracted], kernel_axes[contracted:]
        if not inputs.endswith(summed) or outputs != inputs.removesuffix(summed) + kept:
            raise ValueError(f"{self.equation!r}: expected an equation such as 'btd,dhk->bthk'")
        rows = int(np.prod(self.shape[:contracted]))
        # The standard deviation is BERT's 0.02 at its width of 768, scaled to other input sizes.
        init = truncated_normal(self.init_scale * (3 * rows) ** -0.5)
        kernel = self.param("kernel", metadata.with_axes(init, kernel_axes, contracted), tuple(self.shape))
        dtype = compute_dtype(self.dtype)
        tokens, features = x.shape[: x.ndim - contracted], self.shape[contracted:]
        # One matrix product over all tokens: with separate batch and position axes, XLA on CPU turns the gradient of
        # the kernel into a strided transposing copy that costs more than the product. But a merged axis cannot be split
        # over positions.
        leading = tokens if sharding.current_ways("residual_position") > 1 else (-1,)
        y = products.multiply(x.astype(dtype).reshape(*leading, rows), kernel.reshape(rows, -1), self.dtype)
        if self.bias:
            bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, kept), tuple(features))
            y = y + bias.astype(dtype).reshape(-1)
        return y.reshape(*tokens, *features)


@flax.struct.dataclass
class LMHead:
    """Output layer that maps hidden vectors to vocabulary logits: `x · tableᵀ + bias`."""

    table: jax.Array
    """Output embeddings, float32 [vocab, embed]. They are the token embeddings if the two are tied."""
    bias: jax.Array | None = None
    """Bias, float32 [vocab]."""
    dtype: DType = flax.struct.field(pytree_node=False, default="auto")
    """Type that the model computes in."""

    def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns vectors [..., embed] and the table in the type in which they are multiplied."""
        rounded = self.dtype == products.ROUNDED and products.is_large(x.shape, self.table.shape)
        dtype = jnp.bfloat16 if rounded else x.dtype
        return x.astype(dtype), self.table.astype(dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """Computes logits, float32 [..., vocab], from vectors [..., embed]."""
        x, table = self.operands(x)
        logits = jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias
