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

With `bfloat16_products`, activations are float32, and the inputs of large matrix products are rounded to bfloat16. With
`int8` and `float8`, the inputs of linear layers are quantized (this needs `pip install 'jaxformer[quantize]'`), and the
rest is computed as with `auto`.
"""

truncated_normal = nn.initializers.truncated_normal


def compute_dtype(dtype: DType) -> jnp.dtype:
    """Returns the JAX data type of the activations for a `DType`. For `auto`, `int8` and `float8`, it depends on the
    platform that the program is compiled for: float32 on CPU, otherwise bfloat16.
    """
    if dtype == products.ROUNDED:
        return jnp.dtype("float32")
    if dtype == "auto" or dtype in products.TYPES:
        dtype = "float32" if sharding.platform() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


class Linear(nn.Module):
    """Linear layer `y = x · kernel + bias`, described by an einsum equation such as `btd,dhk->bthk`.

    The letters after the comma are the axes of the kernel, and determine its sharding (see `sharding.AXES`). The
    contracted axes must be the last axes of `x` and the first axes of the kernel. The other axes of the kernel are the
    axes of the bias and the last axes of the output.
    """

    equation: str
    """Einsum equation `input,kernel->output`, with one letter per axis."""
    shape: Sequence[int]
    """Shape of the kernel, in the order of its letters in `equation`."""
    bias: bool = True
    """Whether to add a bias."""
    dtype: DType = "auto"
    """Data type of the computation."""
    init_scale: float = 1.0
    """Number by which the standard deviation of the random initial kernel is multiplied."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, kernel_axes, outputs = self.equation.replace("->", ",").split(",")
        contracted = sum(axis in inputs for axis in kernel_axes)
        summed, kept = kernel_axes[:contracted], kernel_axes[contracted:]
        if not inputs.endswith(summed) or outputs != inputs.removesuffix(summed) + kept:
            raise ValueError(f"{self.equation!r}: expected an equation such as 'btd,dhk->bthk'")
        rows = int(np.prod(self.shape[:contracted]))
        # The standard deviation is BERT's 0.02 at its width of 768, scaled to other input sizes.
        init = metadata.with_axes(truncated_normal(self.init_scale * (3 * rows) ** -0.5), kernel_axes, contracted)
        kernel = metadata.parameter(self, "kernel", init, tuple(self.shape))
        dtype = compute_dtype(self.dtype)
        tokens, features = x.shape[: x.ndim - contracted], self.shape[contracted:]
        # One matrix product over all tokens: with separate batch and position axes, XLA on CPU turns the gradient of
        # the kernel into a strided transposing copy that costs more than the product. But a merged axis cannot be split
        # over positions.
        leading = tokens if sharding.current_num_parts("residual_position") > 1 else (-1,)
        y = products.multiply(x.astype(dtype).reshape(*leading, rows), kernel.reshape(rows, -1), self.dtype)
        if self.bias:
            zeros = metadata.with_axes(nn.initializers.zeros, kept)
            bias = metadata.parameter(self, "bias", zeros, tuple(features))
            y = y + bias.astype(dtype).reshape(-1)
        return y.reshape(*tokens, *features)


@flax.struct.dataclass
class LMHead:
    """Output layer of a language model. Maps hidden vectors `x` to logits over the vocabulary: `x · tableᵀ + bias`."""

    table: jax.Array
    """Output embeddings, float32 [vocab, embed]. If input and output embeddings are tied, this is the token embedding
    table.
    """
    bias: jax.Array | None = None
    """Bias of the logits, float32 [vocab]. None for no bias."""
    dtype: DType = flax.struct.field(pytree_node=False, default="auto")
    """Data type in which the model computes. It determines the type of the product (see `operands`)."""

    def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns `x` and the table, both converted to the type in which they are multiplied: that of `x`, or bfloat16
        for large products with the dtype `bfloat16_products`.
        """
        rounded = self.dtype == products.ROUNDED and products.is_large(x.shape, self.table.shape)
        dtype = jnp.bfloat16 if rounded else x.dtype
        return x.astype(dtype), self.table.astype(dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """Computes logits, float32 [..., vocab], from hidden vectors x [..., embed]."""
        x, table = self.operands(x)
        logits = jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias


def decoded(lm_head: LMHead | None, vectors: jax.Array | None, axes: str) -> jax.Array | None:
    """Applies the output layer to hidden vectors. Returns the logits, or None if there are no vectors or no output
    layer.

    Args:
      lm_head: output layer, which maps hidden vectors to logits.
      vectors: hidden vectors, [..., embed].
      axes: one letter per axis of the logits (see `sharding.AXES`), for sharding.
    """
    if lm_head is None or vectors is None:
        return None
    return sharding.constrain(lm_head.logits(vectors), axes)
