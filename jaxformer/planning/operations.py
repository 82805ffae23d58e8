"""Counts the FLOPs of the matrix products of a traced function, including loops and recomputation."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

FLASH = "dot_product_attention"
"""Prefix of the names of the JAX primitives that run cuDNN's flash attention."""


def count(traced: jax.stages.Traced) -> float:
    """Returns the FLOPs of the matrix products of a traced function, on all devices together. Each multiplication
    counts as 2 FLOPs.

    XLA's own cost analysis counts the body of a loop only once, and does not count the operations of custom kernels.
    This function instead counts the operations of the traced function, before it is partitioned over devices.
    Operations that rematerialisation repeats are included. For a conditional, the branch with the most operations is
    counted.
    """
    return _of(traced.jaxpr.jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "ragged_dot_general":
        return _grouped(equation)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # type: ignore[attr-defined]
        features = params["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[features]  # type: ignore[attr-defined]
    if name.startswith(FLASH):
        return _attention(equation, name)
    inside = [_of(jaxpr) for jaxpr in _jaxprs(params)]
    if not inside:
        return 0.0
    if name == "cond":
        return max(inside)
    return sum(inside) * _times(name, params)


def _times(name: str, params: Mapping[str, Any]) -> float:
    """Returns how often an equation of a jaxpr (a traced JAX function) runs the jaxpr that it contains, such as the
    number of iterations of a scan.

    Args:
      name: name of the primitive.
      params: parameters of the equation.
    """
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # The inner jaxpr is the program of one part along each axis that is newly split.
        axes = params.get("newly_manual_axes") or params.get("manual_axes") or params["mesh"].axis_names
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(int(size) for size in params["grid_mapping"].grid)
    return 1


def _jaxprs(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape  # type: ignore[attr-defined]
    out = equation.outvars[0].aval.shape  # type: ignore[attr-defined]
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _grouped(equation: core.JaxprEqn) -> float:
    """Returns the FLOPs of a grouped matrix product (`jax.lax.ragged_dot`), in which each group of rows is multiplied
    by its own matrix.
    """
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    left, right = (equation.invars[number].aval.shape for number in (0, 1))  # type: ignore[attr-defined]
    size = math.prod(left[axis] for axis in contracted)
    if set(numbers.lhs_ragged_dimensions) & set(contracted):  # The gradient with respect to the matrices.
        return 2.0 * math.prod(left) * math.prod(right) / size
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * size  # type: ignore[attr-defined]


def _attention(equation: core.JaxprEqn, name: str) -> float:
    """Returns the FLOPs of a cuDNN attention primitive. Its queries and keys are [batch, length, heads, head_dim].

    The forward pass has two matrix products, and the backward pass five.
    """
    rows, queries, heads, size = equation.invars[0].aval.shape  # type: ignore[attr-defined]
    keys = equation.invars[1].aval.shape[1]  # type: ignore[attr-defined]
    return (10.0 if "bwd" in name else 4.0) * rows * heads * queries * keys * size
