"""Converters of JAX operations to ONNX. Each is a function of the graph, the jaxpr equation and the input tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_graph import Graph, Tensor, is_known
from jaxformer.interop.export.onnx_moves import MOVES, output, result


def _broadcast(equation: Any, *tensors: Tensor) -> tuple[Any, ...]:
    """Returns the shape that the result of an elementwise operation has in the ONNX graph. An axis that has size 1 in
    all inputs keeps size 1, even if it is longer in JAX, where it has been broadcast.
    """
    full = output(equation).shape
    shapes = [(1,) * (len(full) - len(tensor.shape)) + tuple(tensor.shape) for tensor in tensors]
    return tuple(next((shape[axis] for shape in shapes if not _is_one(shape[axis])), 1) for axis in range(len(full)))


def _is_one(size: Any) -> bool:
    return isinstance(size, int | np.integer) and size == 1


def _elementwise(kind: str, **attributes: Any) -> Callable:
    def convert(graph: Graph, equation: Any, *tensors: Tensor) -> Tensor:
        bits = kind in ("And", "Or", "Xor", "Not") and tensors[0].dtype != bool
        value = graph.op(f"Bitwise{kind}" if bits else kind, *map(graph.value, tensors), **attributes)
        return result(graph, value, equation, _broadcast(equation, *tensors))

    return convert


def _inverted(kind: str) -> Callable:
    def convert(graph: Graph, equation: Any, *tensors: Tensor) -> Tensor:
        value = graph.op("Not", graph.op(kind, *map(graph.value, tensors)))
        return result(graph, value, equation, _broadcast(equation, *tensors))

    return convert


def _composed(function: Callable[[Graph, Callable, ir.Value], ir.Value]) -> Callable:
    """Builds the converter of an elementwise JAX operation that is expressed by several ONNX operations.

    `function` receives the graph, a function that creates constants of the input's dtype, and the input.
    """

    def convert(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
        def number(value: float) -> ir.Value:
            return graph.value(graph.constant(np.array(value, tensor.dtype)))

        return result(graph, function(graph, number, graph.value(tensor)), equation, tensor.shape)

    return convert


def _integer_pow(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    exponent = graph.value(graph.constant(np.array(equation.params["y"], tensor.dtype)))
    return result(graph, graph.op("Pow", graph.value(tensor), exponent), equation, tensor.shape)


def _select(graph: Graph, equation: Any, which: Tensor, *cases: Tensor) -> Tensor:
    if which.dtype != bool or len(cases) != 2:
        raise InputError("the JAX operation select_n of more than two cases cannot be converted to ONNX")
    value = graph.op("Where", graph.value(which), graph.value(cases[1]), graph.value(cases[0]))
    return result(graph, value, equation, _broadcast(equation, which, *cases))


def _dot_general(graph: Graph, equation: Any, left: Tensor, right: Tensor) -> Tensor:
    """Converts a dot_general to a batched matrix product."""
    (summed, batch), sides = equation.params["dimension_numbers"], []
    for number, tensor in enumerate((left, right)):
        full = equation.invars[number].aval.shape
        kept = [axis for axis in range(len(full)) if axis not in (*batch[number], *summed[number])]
        order = [*batch[number], *kept, *summed[number]] if number == 0 else [*batch[number], *summed[number], *kept]
        groups = [[full[axis] for axis in axes] for axes in (batch[number], kept, summed[number])]
        sides.append((graph.broadcast_to(tensor, full), order, groups))
    values = []
    for number, (tensor, order, (batched, kept, along)) in enumerate(sides):
        flat = (
            [*batched, _product(kept), _product(along)] if number == 0 else [*batched, _product(along), _product(kept)]
        )
        values.append(_matrix(graph, tensor, order, flat))
    value = graph.op("MatMul", values[0], values[1])
    shape = [*sides[0][2][0], *sides[0][2][1], *sides[1][2][1]]
    if len(sides[0][2][1]) != 1 or len(sides[1][2][1]) != 1:
        value = graph.op("Reshape", value, graph.shape(shape))
    return result(graph, value, equation)


def _matrix(graph: Graph, tensor: Tensor, order: list[int], flat: list[Any]) -> ir.Value:
    shape = tuple(tensor.shape[axis] for axis in order)
    reshaped, moved = shape != tuple(flat), order != sorted(order)
    if tensor.array is not None and is_known(flat) and not moved:
        return graph.value(graph.constant(tensor.array.reshape(flat), tensor.name) if reshaped else tensor)
    value = graph.value(tensor)
    if moved:
        value = graph.op("Transpose", value, perm=order)
    return graph.op("Reshape", value, graph.shape(flat)) if reshaped else value


def _product(sizes: list[Any]) -> Any:
    product = 1
    for size in sizes:
        product = size * product
    return product


def _convolution(graph: Graph, equation: Any, image: Tensor, kernel: Tensor) -> Tensor:
    """Converts a convolution. Transposes the inputs and the output, because ONNX expects the channel axis before the
    spatial axes.
    """
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        raise InputError("the JAX operation conv_general_dilated with groups or holes cannot be converted to ONNX")
    tensors = [graph.broadcast_to(*pair) for pair in zip((image, kernel), _shapes(equation), strict=True)]
    moved = [
        graph.op("Transpose", graph.value(tensor), perm=list(order))
        for tensor, order in zip(tensors, (numbers.lhs_spec, numbers.rhs_spec), strict=True)
    ]
    padding = params["padding"]
    value = graph.op(
        "Conv",
        *moved,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[low for low, _ in padding] + [high for _, high in padding],
    )
    back = [numbers.out_spec.index(axis) for axis in range(len(numbers.out_spec))]
    return result(graph, graph.op("Transpose", value, perm=back), equation)


def _shapes(equation: Any) -> list[Any]:
    return [variable.aval.shape for variable in equation.invars]


def _max_pool(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    """Converts the maximum over windows of images [batch, height, width, channels]."""
    params = equation.params
    window, strides, padding = (params[name] for name in ("window_dimensions", "window_strides", "padding"))
    if (
        len(window) != 4
        or window[0] != 1
        or window[3] != 1
        or {*params["base_dilation"], *params["window_dilation"]} != {1}
    ):
        raise InputError("the JAX operation reduce_window_max of these windows cannot be converted to ONNX")
    whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
    pads = [low for low, _ in padding[1:3]] + [high for _, high in padding[1:3]]
    value = graph.op("Transpose", graph.value(whole), perm=[0, 3, 1, 2])
    value = graph.op("MaxPool", value, kernel_shape=list(window[1:3]), strides=list(strides[1:3]), pads=pads)
    return result(graph, graph.op("Transpose", value, perm=[0, 2, 3, 1]), equation)


def _reduction(kind: str) -> Callable:
    def convert(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
        whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
        axes, value = graph.integers(equation.params["axes"]), graph.value(whole)
        if whole.dtype != bool:
            return result(graph, graph.op(kind, value, axes, keepdims=0), equation)
        value = graph.op(kind, graph.cast(value, np.int32), axes, keepdims=0)
        return result(graph, graph.cast(value, bool), equation)

    return convert


def _argmax(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    whole, (axis,) = graph.broadcast_to(tensor, equation.invars[0].aval.shape), equation.params["axes"]
    value = graph.cast(graph.value(whole), np.int32) if whole.dtype == bool else graph.value(whole)
    value = graph.op("ArgMax", value, axis=axis, keepdims=0)
    return result(graph, graph.cast(value, output(equation).dtype), equation)


def _cumsum(graph: Graph, equation: Any, tensor: Tensor) -> Tensor:
    whole = graph.broadcast_to(tensor, equation.invars[0].aval.shape)
    axis = graph.value(graph.constant(np.array(equation.params["axis"], np.int64)))
    value = graph.op("CumSum", graph.value(whole), axis, reverse=int(equation.params["reverse"]))
    return result(graph, value, equation)


def _sort(graph: Graph, equation: Any, *tensors: Tensor) -> list[Tensor]:
    """Converts a sort of several arrays by the values of the first array."""
    axis, avals = equation.params["dimension"], [atom.aval for atom in equation.invars]
    if equation.params["num_keys"] != 1:
        raise InputError("the JAX operation sort by several keys cannot be converted to ONNX")
    wholes = [graph.value(graph.broadcast_to(tensor, aval.shape)) for tensor, aval in zip(tensors, avals, strict=True)]
    key, length = wholes[0], graph.length(avals[0].shape[axis])
    ordered, places = graph.op("TopK", key, length, outputs=2, axis=axis, largest=0, sorted=1)
    rest = [graph.op("GatherElements", value, places, axis=axis) for value in wholes[1:]]
    return [graph.tensor(value, aval.shape, aval.dtype) for value, aval in zip([ordered, *rest], avals, strict=True)]


def _top_k(graph: Graph, equation: Any, tensor: Tensor) -> list[Tensor]:
    """Converts `top_k`, which returns the largest values along an axis in decreasing order, and their indices."""
    whole = graph.value(graph.broadcast_to(tensor, equation.invars[0].aval.shape))
    count = graph.length(equation.params["k"])
    values, places = graph.op("TopK", whole, count, outputs=2, axis=equation.params["axis"], largest=1, sorted=1)
    found = values, graph.cast(places, np.int32)
    avals = [variable.aval for variable in equation.outvars]
    return [graph.tensor(value, aval.shape, aval.dtype) for value, aval in zip(found, avals, strict=True)]


def _inside(name: str) -> Callable:
    """Builds the converter of an operation that contains a nested jaxpr, such as a function call. The converter adds
    the operations of the nested jaxpr to the graph.

    `name` is the equation parameter that contains the nested jaxpr.
    """

    def convert(graph: Graph, equation: Any, *tensors: Tensor) -> list[Tensor]:
        inner = equation.params[name]
        closed = hasattr(inner, "consts")
        return graph.evaluate(inner.jaxpr if closed else inner, inner.consts if closed else (), tensors)

    return convert


def _scan(graph: Graph, equation: Any, *tensors: Tensor) -> list[Tensor]:
    """Converts a scan without stacked outputs by adding the operations of its body once per iteration. If a scanned
    array is known during the conversion, such as the stacked parameters of all layers, its slices are known too.
    """
    params = equation.params
    if "ft_in" in params:  # JAX 0.12: trees of the constants, the carry and the scanned arrays.
        fixed, carried = [len(part) for part in params["ft_in"].unpack()][:2]
    else:
        fixed, carried = params["num_consts"], params["num_carry"]
    constants, carry = list(tensors[:fixed]), list(tensors[fixed : fixed + carried])
    rows, inner, collected = tensors[fixed + carried :], params["jaxpr"], []
    order = range(params["length"])
    for number in reversed(order) if params["reverse"] else order:
        parts = [_row(graph, row, number) for row in rows]
        found = graph.evaluate(inner.jaxpr, inner.consts, [*constants, *carry, *parts])
        carry = found[:carried]
        collected.append(found[carried:])
    if collected and collected[0]:
        raise InputError("the JAX operation scan with stacked outputs cannot be converted to ONNX")
    return carry


def _row(graph: Graph, tensor: Tensor, number: int) -> Tensor:
    if tensor.array is not None:
        row = tensor.array[min(number, len(tensor.array) - 1)]
        return graph.constant(row, f"{tensor.name}/{number}" if tensor.name else "")
    at = graph.value(graph.constant(np.array(number, np.int64)))
    return graph.tensor(graph.op("Gather", graph.value(tensor), at, axis=0), tensor.shape[1:], tensor.dtype)


def _cond(graph: Graph, equation: Any, which: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Converts a conditional to an ONNX If operation with two nested graphs. The program runs one of them."""
    bodies, outer, lengths = [], graph.nodes, dict(graph.lengths)
    for number, branch in enumerate(equation.params["branches"]):
        graph.nodes, graph.lengths = [], dict(lengths)
        found = graph.evaluate(branch.jaxpr, branch.consts, tensors)
        wholes = [graph.broadcast_to(tensor, aval.shape) for tensor, aval in zip(found, branch.out_avals, strict=True)]
        outputs = [graph.op("Identity", graph.value(tensor)) for tensor in wholes]
        for value, aval in zip(outputs, branch.out_avals, strict=True):
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(aval.dtype)), None
        bodies.append(ir.Graph([], outputs, nodes=graph.nodes, name=f"branch_{number}"))
    graph.nodes, graph.lengths = outer, lengths
    avals = [variable.aval for variable in equation.outvars]
    condition = graph.cast(graph.value(which), bool)
    values = graph.op("If", condition, outputs=len(avals), then_branch=bodies[1], else_branch=bodies[0])
    values = values if isinstance(values, list) else [values]
    return [graph.tensor(value, aval.shape, aval.dtype) for value, aval in zip(values, avals, strict=True)]


def _clamp(graph: Graph, equation: Any, low: Tensor, tensor: Tensor, high: Tensor) -> Tensor:
    value = graph.op("Max", graph.value(tensor), graph.value(low))
    value = graph.op("Min", value, graph.value(high))
    return result(graph, value, equation, _broadcast(equation, low, tensor, high))


ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "and": "And",
    "or": "Or",
    "xor": "Xor",
    "not": "Not",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "logistic": "Sigmoid",
}
"""Maps names of elementwise JAX operations to the ONNX operations that compute the same function."""
OPERATIONS: Mapping[str, Callable] = {
    **MOVES,
    **{name: _elementwise(kind) for name, kind in ELEMENTWISE.items()},
    "rem": _elementwise("Mod", fmod=1),
    "ne": _inverted("Equal"),
    "rsqrt": _composed(lambda graph, number, x: graph.op("Reciprocal", graph.op("Sqrt", x))),
    "erfc": _composed(lambda graph, number, x: graph.op("Sub", number(1), graph.op("Erf", x))),
    "log1p": _composed(lambda graph, number, x: graph.op("Log", graph.op("Add", number(1), x))),
    "square": _composed(lambda graph, number, x: graph.op("Mul", x, x)),
    "integer_pow": _integer_pow,
    "select_n": _select,
    "clamp": _clamp,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_or": _reduction("ReduceMax"),
    "reduce_and": _reduction("ReduceMin"),
    "argmax": _argmax,
    "cumsum": _cumsum,
    "sort": _sort,
    "top_k": _top_k,
    "scan": _scan,
    "cond": _cond,
    **{name: _inside("jaxpr") for name in ("jit", "pjit", "checkpoint", "remat2")},
    **{name: _inside("call_jaxpr") for name in ("custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")},
}
"""Maps names of JAX operations to functions that convert them to ONNX."""
