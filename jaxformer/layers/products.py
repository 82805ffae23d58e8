"""Matrix products whose inputs are rounded or quantized to a narrower type than the layer's inputs: bfloat16, int8 or
float8.

Quantization uses the library Qwix, which `pip install 'jaxformer[quantize]'` installs. The products have custom
gradients, because JAX would compute their gradients in the type of the result.
"""

import functools
import importlib.util
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError

ROUNDED = "bfloat16_products"
"""Name of the `DType` with which activations are float32, and the inputs of large matrix products are rounded to
bfloat16.
"""
Quantized = Literal["int8", "float8"]
MIN_OPERATIONS_PER_CONVERSION = 64
"""Minimum ratio of a matrix product's operations to type conversions for which the product is computed in bfloat16. See
`is_large`.
"""
TYPES: dict[str, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""Maps each quantized type to a pair of JAX types: that of inputs and kernels, and that of the gradients in the
backward pass (Micikevicius et al. 2022).
"""


def multiply(x: jax.Array, kernel: jax.Array, kind: str) -> jax.Array:
    """Multiplies vectors by the kernel of a linear layer. Returns [..., out] in the type of `x`.

    Args:
      x: vectors, [..., in].
      kernel: float32 [in, out].
      kind: `bfloat16_products`, `int8` or `float8`. With any other value, the product is computed in the type of `x`.

    Raises:
      InputError: If `kind` is `int8` or `float8`, and the library Qwix is not installed.
    """
    if kind in TYPES:
        check_installed(kind)
        return _quantized(kind, x, kernel.astype(x.dtype))
    if kind == ROUNDED and is_large(x.shape, kernel.shape):
        return _rounded(x, kernel)
    return x @ kernel.astype(x.dtype)


def is_large(x: tuple[Any, ...], kernel: tuple[int, ...]) -> bool:
    """Returns whether a matrix product is so large that it is faster in bfloat16, although its inputs have to be
    converted.

    A product takes rows · in · out operations, and converts rows · in + rows · out + in · out numbers, where rows is
    the number of vectors. The ratio must be at least `MIN_OPERATIONS_PER_CONVERSION`. Returns False if the number of
    vectors is symbolic, as in exported programs.

    Args:
      x: shape of the vectors, [..., in].
      kernel: shape of the kernel, [in, out].
    """
    if any(map(jax.export.is_symbolic_dim, x)):
        return False
    rows = math.prod(x[:-1])
    return rows > 0 and 1 / (1 / rows + sum(1 / size for size in kernel)) >= MIN_OPERATIONS_PER_CONVERSION


def check_installed(kind: str) -> None:
    """Raises InputError if the library Qwix, which the dtype `kind` (`int8` or `float8`) needs, is not installed."""
    if importlib.util.find_spec("qwix") is None:
        raise InputError(f"dtype={kind}: Qwix is not installed; pip install 'jaxformer[quantize]'")


@jax.custom_vjp
def _rounded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _rounded_forward(x, kernel)[0]


def _rounded_forward(x, kernel):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32), (x, kernel)


def _rounded_backward(inputs, gradient):
    x, kernel = inputs
    gradient = gradient.astype(jnp.bfloat16)
    dx = jnp.matmul(gradient, kernel.T, preferred_element_type=jnp.float32)
    return dx, _kernel_gradient(x, gradient)


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    rows = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, gradient, (rows, rows), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantized(kind: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _quantized_forward(kind, x, kernel)[0]


def _quantized_forward(kind, x, kernel):
    return _product(x, TYPES[kind][0], kernel, TYPES[kind][0]), (x, kernel)


def _quantized_backward(kind, inputs, gradient):
    """Computes the gradients of a quantized product with respect to x and the kernel. The gradient of the kernel is
    computed without quantization: it is a sum over all tokens, in which 8 bits would lose small terms.
    """
    x, kernel = inputs
    dx = _product(gradient, TYPES[kind][1], kernel.T, TYPES[kind][0])
    return dx, _kernel_gradient(x, gradient).astype(kernel.dtype)


_quantized.defvjp(_quantized_forward, _quantized_backward)


def _product(x: jax.Array, x_type: Any, kernel: jax.Array, kernel_type: Any) -> jax.Array:
    """Quantizes vectors x [..., in] to `x_type` and a kernel [in, out] to `kernel_type`, and multiplies them. Each
    vector and each column of the kernel has its own scale. Returns [..., out] in the type of `x`.
    """
    import qwix  # Imported here because it is an extra.

    vectors = qwix.quantize(x, x_type, channelwise_axes=tuple(range(x.ndim - 1)))
    columns = qwix.quantize(kernel, kernel_type, channelwise_axes=(1,))
    return qwix.dot(vectors, columns, preferred_element_type=jnp.float32).astype(x.dtype)
