"""Builds ONNX models from JAX functions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.export
import numpy as np
import onnx_ir as ir
from jax.interpreters import partial_eval

from jaxformer.interop.export.onnx_graph import Graph, Tensor
from jaxformer.interop.export.onnx_operations import OPERATIONS

OPSET, IR_VERSION = 18, 10
"""Versions of the ONNX operator set and file format. ONNX Runtime since 1.18 and transformers.js support them."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """Specification of an input array of an ONNX program."""

    axes: tuple[str | int, ...]
    """Axes of the array: integers for fixed sizes, and names, or sums of names such as
    `past_sequence_length + sequence_length`, for dynamic sizes.
    """
    dtype: str
    """ONNX name of the data type, such as `int64`. The program converts int64 inputs to int32."""
    meaning: str = ""
    """Description of the array in the README of an export."""


def build(
    function: Callable[..., Mapping[str, jax.Array]],
    params: Mapping[str, np.ndarray],
    arguments: Mapping[str, Argument],
    limits: Sequence[str] = (),
) -> ir.Model:
    """Builds the ONNX model of a function.

    Args:
      function: Function to convert: `function(params, **arrays)`. `params` is a dict that maps parameter paths to
        arrays; the other arguments are the input arrays. It returns a dict that maps output names to arrays.
      params: Parameters, a dict that maps paths to arrays.
      arguments: Specifications of the function's arguments, in order.
      limits: Constraints on the sizes of dynamic axes, such as `length <= 512`.

    Raises:
      InputError: If the function uses an operation that cannot be converted.
    """
    names = dict.fromkeys(name for argument in arguments.values() for axis in argument.axes for name in _names(axis))
    symbols = jax.export.symbolic_shape(", ".join(names), constraints=list(limits)) if names else ()
    sizes = dict(zip(names, symbols, strict=True))
    specs, graph, tensors = {}, Graph(OPERATIONS), {}
    for name, argument in arguments.items():
        shape = tuple(
            axis if isinstance(axis, int) else sum(sizes[part] for part in _names(axis)) for axis in argument.axes
        )
        dtype = np.dtype("int32" if argument.dtype == "int64" else argument.dtype)
        specs[name] = jax.ShapeDtypeStruct(shape, dtype)
        type_ = ir.TensorType(ir.DataType.from_numpy(np.dtype(argument.dtype)))
        value = ir.Value(name=name, shape=ir.Shape(argument.axes), type=type_)
        tensors[name] = (value, shape, dtype)
    for name, (value, _, _) in tensors.items():
        for number, axis in enumerate(arguments[name].axes):
            if isinstance(axis, str) and axis not in graph.lengths and len(_names(axis)) == 1:
                graph.lengths[axis] = graph.op("Shape", value, start=number, end=number + 1)
    weights = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in params.items()}
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(weights, **specs)
    given = [graph.constant(params[path], path) for path in sorted(weights)]
    for name in sorted(tensors):
        value, shape, dtype = tensors[name]
        given.append(
            graph.tensor(value if arguments[name].dtype != "int64" else graph.cast(value, dtype), shape, dtype)
        )
    # Without what the outputs do not need, such as the auxiliary losses of experts.
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    found = graph.evaluate(needed, closed.consts, given)
    computed = dict(zip(sorted(shapes), found, strict=True))
    outputs = [_output(graph, name, computed[name], shapes[name]) for name in sorted(shapes, key=_in_order)]
    inputs = [tensors[name][0] for name in arguments]
    body = ir.Graph(inputs, outputs, nodes=graph.nodes, opset_imports={"": OPSET}, name="model")
    for value in graph.stored.values():
        body.register_initializer(value)
    return ir.Model(body, ir_version=IR_VERSION, producer_name="jaxformer")


def _output(graph: Graph, name: str, tensor: Tensor, spec: jax.ShapeDtypeStruct) -> ir.Value:
    """Declares a tensor as an output of the graph, with its full shape. Returns the output value."""
    value = graph.op("Identity", graph.value(graph.broadcast_to(tensor, spec.shape)))
    value.name, value.type = name, ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
    value.shape = ir.Shape([size if isinstance(size, int) else str(size).replace("*", " * ") for size in spec.shape])
    return value


def _in_order(name: str) -> list[str]:
    """Returns a sort key that orders output names by their layer numbers, because the optimum library identifies
    outputs by their order.
    """
    return [part.rjust(9, "0") if part.isdigit() else part for part in name.split(".")]


def _names(axis: str | int) -> list[str]:
    return axis.split(" + ") if isinstance(axis, str) else []
