"""Converters to ONNX for JAX operations that move, reshape or repeat values.

Each converter is a function of the graph, the jaxpr equation and the input tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_graph import Graph, Tensor


def output(equation: Any) -> Any:
    """Returns the shape and dtype of the only output of a jaxpr equation."""
    return equation.outvars[0].aval


def result(graph: Graph, value: ir.Value, equation: Any, shape: Any = None) -> Tensor:
    """Wraps an ONNX value as the tensor of the only output of a jaxpr equation.

    Args:
      graph: graph that contains the value.
      value: ONNX value with the contents of the output.
      equation: jaxpr equation whose output the value is.
      shape: shape of `value`, if axes have size 1 that are broadcast later. Defaults to the shape of the output.
    """
    aval = output(equation)
    return graph.tensor(value, aval.shape if shape is None else shape, aval.dtype)


def _same(graph: Graph, equation: Any, *tensors: Tensor) -> list[Tensor]:
    return list(tensors)


def _convert(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == tensor.dtype:
        return tensor
    return graph.tensor(graph.cast(graph.value(tensor), dtype), tensor.shape, dtype)


def _broadcast_in_dim(graph: Graph, equation: Any, tensor: Tensor, *sizes: Tensor) -> Tensor:
    """Inserts axes of size 1, so that the axes of the tensor have the same positions as in the output. Later operations
    broadcast the inserted axes.
    """
    places, rank = equation.params["broadcast_dimensions"], len(output(equation).shape)
    shape = [1] * rank
    for place, size in zip(places, tensor.shape, strict=True):
        shape[place] = size
    if tensor.array is not None:
        return graph.constant(tensor.array.reshape(shape))
    added = [axis for axis in range(rank) if axis not in places]
    if not added:
        return tensor
    return graph.tensor(graph.op("Unsqueeze", graph.value(tensor), graph.integers(added)), shape, tensor.dtype)


def _reshape(graph: Graph, equation: Any, tensor: Tensor, *sizes: Tensor) -> Tensor:
    whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
    value = graph.op("Reshape", graph.value(whole), graph.shape(equation.params["new_sizes"]))
    return result(graph, value, equation)


def _squeeze(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    axes = equation.params["dimensions"]
    shape = [size for axis, size in enumerate(tensor.shape) if axis not in axes]
    if not axes:
        return tensor
    return result(graph, graph.op("Squeeze", graph.value(tensor), graph.integers(axes)), equation, shape)


def _transpose(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    permutation = equation.params["permutation"]
    shape = [tensor.shape[axis] for axis in permutation]
    return result(graph, graph.op("Transpose", graph.value(tensor), perm=list(permutation)), equation, shape)


def _iota(graph: Graph, equation: Any) -> Tensor:
    axis, shape = equation.params["dimension"], output(equation).shape
    zero, one = (graph.value(graph.constant(np.array(number, np.int64))) for number in (0, 1))
    length = graph.op("Squeeze", graph.length(shape[axis]), graph.integers([0]))
    value = graph.cast(graph.op("Range", zero, length, one), output(equation).dtype)
    added = [other for other in range(len(shape)) if other != axis]
    if added:
        value = graph.op("Unsqueeze", value, graph.integers(added))
    return result(graph, value, equation, [shape[axis] if other == axis else 1 for other in range(len(shape))])


def _dimension(graph: Graph, equation: Any) -> Tensor:
    value = graph.op("Squeeze", graph.length(equation.params["dim"]), graph.integers([0]))
    return result(graph, graph.cast(value, output(equation).dtype), equation)


def _concatenate(graph: Graph, equation: Any, *tensors: Tensor) -> Tensor:
    shapes = [atom.aval.shape for atom in equation.invars]
    wholes = [graph.broadcast_to(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]
    value = graph.op("Concat", *map(graph.value, wholes), axis=equation.params["dimension"])
    return result(graph, value, equation)


def _stack(graph: Graph, equation: Any, *tensors: Tensor) -> Tensor:
    axis = equation.params["axis"]
    pairs = zip(tensors, equation.invars, strict=True)
    wholes = [graph.value(graph.broadcast_to(tensor, atom.aval.shape)) for tensor, atom in pairs]
    values = [graph.op("Unsqueeze", whole, graph.integers([axis])) for whole in wholes]
    return result(graph, graph.op("Concat", *values, axis=axis), equation)


def _split(graph: Graph, equation: Any, tensor: Tensor) -> list[Tensor]:
    axis, sizes = equation.params["axis"], [int(size) for size in equation.params["sizes"]]
    whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
    values = graph.op("Split", graph.value(whole), graph.integers(sizes), outputs=len(sizes), axis=axis)
    return [
        graph.tensor(value, variable.aval.shape, variable.aval.dtype)
        for value, variable in zip(values, equation.outvars, strict=True)
    ]


def _pad(graph: Graph, equation: Any, tensor: Tensor, fill: Tensor) -> Tensor:
    config = equation.params["padding_config"]
    if any(not _is_zero(inner) for _, _, inner in config):
        raise InputError("the JAX operation pad with interior padding cannot be converted to ONNX")
    whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
    pads = graph.shape([*(low for low, _, _ in config), *(high for _, high, _ in config)])
    return result(graph, graph.op("Pad", graph.value(whole), pads, graph.value(fill)), equation)


def _is_zero(size: Any) -> bool:
    return isinstance(size, int | np.integer) and size == 0


def _slice(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    params, full = equation.params, equation.invars[0].aval.shape
    strides = params["strides"] or (1,) * len(full)
    axes = [
        axis
        for axis, size in enumerate(full)
        if not (
            _is_zero(params["start_indices"][axis]) and params["limit_indices"][axis] == size and strides[axis] == 1
        )
    ]
    if not axes:
        return tensor
    whole = graph.broadcast_to(tensor, full)
    starts, ends = (graph.shape([params[name][axis] for axis in axes]) for name in ("start_indices", "limit_indices"))
    steps = graph.integers([strides[axis] for axis in axes])
    return result(graph, graph.op("Slice", graph.value(whole), starts, ends, graph.integers(axes), steps), equation)


def _start(graph: Graph, start: Tensor, size: Any, part: Any) -> ir.Value:
    """Computes the start index of a slice along one axis as an int64 vector of length 1. It is clamped so that the
    slice fits, as in JAX.

    Args:
      graph: Graph to add the operations to.
      start: Start index.
      size: Size of the axis.
      part: Size of the slice.
    """
    value = graph.op("Reshape", graph.cast(graph.value(start), np.int64), graph.integers([1]))
    last = graph.length(size - part)
    return graph.op("Max", graph.op("Min", value, last), graph.integers([0]))


def _dynamic_slice(graph: Graph, equation: Any, tensor: Tensor, *starts: Tensor) -> Tensor:
    return result(graph, _part(graph, tensor, equation, dict(enumerate(starts)), output(equation).shape), equation)


def _part(graph: Graph, tensor: Tensor, equation: Any, starts: Mapping[int, Tensor], sizes: Any) -> ir.Value:
    """Slices the first input of an equation.

    Args:
      graph: Graph to add the operations to.
      tensor: Input to slice.
      equation: Equation of the jaxpr.
      starts: Start index of each axis to slice.
      sizes: Size of the slice along each axis.
    """
    full = equation.invars[0].aval.shape
    value = graph.value(graph.broadcast_to(tensor, full))
    for axis, start in starts.items():
        if full[axis] != sizes[axis]:
            begin = _start(graph, start, full[axis], sizes[axis])
            end = graph.op("Add", begin, graph.length(sizes[axis]))
            value = graph.op("Slice", value, begin, end, graph.integers([axis]))
    return value


def _dynamic_update_slice(graph: Graph, equation: Any, tensor: Tensor, update: Tensor, *starts: Tensor) -> Tensor:
    full, part = (atom.aval.shape for atom in equation.invars[:2])
    axes = [axis for axis in range(len(full)) if full[axis] != part[axis]]
    update = graph.broadcast_to(update, part)
    if not axes:
        return update
    if len(axes) > 1:
        raise InputError("the JAX operation dynamic_update_slice of several axes cannot be converted to ONNX")
    (axis,), value = axes, graph.value(graph.broadcast_to(tensor, full))
    begin = _start(graph, starts[axis], full[axis], part[axis])
    end = graph.op("Add", begin, graph.length(part[axis]))
    along = graph.integers([axis])
    before = graph.op("Slice", value, graph.integers([0]), begin, along)
    after = graph.op("Slice", value, end, graph.length(full[axis]), along)
    return result(graph, graph.op("Concat", before, graph.value(update), after, axis=axis), equation)


def _entry(graph: Graph, vector: Tensor, number: int) -> Tensor:
    """Returns the entry with index `number` of a vector, as a tensor of shape [1]."""
    if vector.array is not None:
        return graph.constant(vector.array[number : number + 1])
    value = graph.op("Gather", graph.value(vector), graph.integers([number]), axis=0)
    return graph.tensor(value, (1,), vector.dtype)


def _gather(graph: Graph, equation: Any, tensor: Tensor, indices: Tensor) -> Tensor:
    """Gathers whole slices at given indices of one axis, such as rows of a table.

    If the gather has batch dimensions, each batch row has its own indices.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    full, places = (atom.aval.shape for atom in equation.invars)
    batch, axis = numbers.operand_batching_dims, numbers.start_index_map[0]
    if len(places) == 1 and not batch:  # A single slice, such as x[:, 0].
        starts = {axis: _entry(graph, indices, number) for number, axis in enumerate(numbers.start_index_map)}
        value = _part(graph, tensor, equation, starts, sizes)
        if numbers.collapsed_slice_dims:
            value = graph.op("Squeeze", value, graph.integers(numbers.collapsed_slice_dims))
        return result(graph, value, equation)
    leading, rank = len(places) - 1, len(output(equation).shape)
    start = 0 if batch else axis  # Position of the index axes in the output.
    regular = (
        len(numbers.start_index_map) == 1
        and numbers.collapsed_slice_dims == (axis,)
        and batch == numbers.start_indices_batching_dims == tuple(range(len(batch)))
        and (not batch or axis == len(batch))
        and numbers.offset_dims == tuple(at for at in range(rank) if not start <= at < start + leading)
        and all(sizes[at] == full[at] for at in range(len(full)) if at not in (*batch, axis))
    )
    if not regular:
        raise InputError(f"the JAX operation gather with {numbers} cannot be converted to ONNX")
    table = graph.value(graph.broadcast_to(tensor, full))
    at = graph.broadcast_to(indices, places)
    if batch:
        places_ = graph.cast(graph.value(at), np.int64)
        return result(graph, graph.op("GatherND", table, places_, batch_dims=len(batch)), equation)
    at = graph.op("Squeeze", graph.value(at), graph.integers([leading]))
    return result(graph, graph.op("Gather", table, at, axis=axis), equation)


MOVES: Mapping[str, Callable] = {
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "iota": _iota,
    "dim_as_value": _dimension,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "sharding_constraint", "optimization_barrier"), _same),
}
"""Maps names of JAX operations to functions that convert them to ONNX."""
