"""Converts a JAX function to an ONNX graph with dynamic axes, one operation of its jaxpr at a time.

Values that depend only on parameters and constants are computed during the conversion and stored. A broadcast is
omitted if the next ONNX operation broadcasts its inputs, which ONNX does by the rules of NumPy.
"""

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.extend
import numpy as np
import onnx_ir as ir

from jaxformer.errors import InputError

Dimension = Any
"""Size of an axis: an integer or a symbolic dimension of JAX."""


@dataclasses.dataclass(eq=False)
class Tensor:
    """Intermediate array of a JAX function during its conversion to ONNX. Either its value is already known, or a node
    of the ONNX graph computes it.

    Axes along which the array is broadcast may have size 1 in `shape`. `Graph.broadcast_to` gives them their full size.
    """

    array: np.ndarray | None
    """Value of the array if it is known during the conversion. None if the graph computes it."""
    value: ir.Value | None
    """Node output or stored weight of the ONNX graph that contains the array. None for a known array that is not yet
    stored in the graph.
    """
    shape: tuple[Dimension, ...]
    """Shape of the array in the graph. Broadcast axes may have size 1."""
    dtype: np.dtype
    name: str = ""
    """Path of the parameter, if the array is a parameter."""


class Graph:
    """ONNX graph to which operations are added during the conversion of a JAX function.

    Args:
      operations: Maps names of JAX operations to converters. A converter is a function of the graph, the jaxpr equation
        and the input tensors. It returns the output tensor, or a list of them.
    """

    def __init__(self, operations: Mapping[str, Callable]):
        self.operations = operations
        self.nodes: list[ir.Node] = []
        self.stored: dict[str, ir.Value] = {}
        self.lengths: dict[str, ir.Value] = {}
        self._count = 0
        self._constants: dict[tuple, Tensor] = {}

    def op(self, kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds an ONNX operation to the graph. Returns its output value, or a list if there are several."""
        node = ir.node(kind, inputs, attributes=attributes or None, num_outputs=outputs, name=f"{kind}_{self._count}")
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}_{number}"  # Nested graphs share the names of this one.
        self._count += 1
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """Stores an int64 vector in the graph. Returns its ONNX value."""
        return self.value(self.constant(np.array(numbers, np.int64)))

    def constant(self, array: np.ndarray, name: str = "") -> Tensor:
        """Converts a NumPy array to a tensor whose value is known. Small equal arrays are stored only once."""
        array = np.asarray(array)
        if array.size > 64 or name:
            return Tensor(array, None, array.shape, array.dtype, name)
        key = (array.dtype.str, array.shape, array.tobytes())
        return self._constants.setdefault(key, Tensor(array, None, array.shape, array.dtype))

    def value(self, tensor: Tensor) -> ir.Value:
        """Returns the ONNX value of a tensor. If the tensor is a known array that is not stored in the graph yet,
        stores it.
        """
        if tensor.value is None:
            name = tensor.name or f"constant_{len(self.stored)}"
            while name in self.stored:
                name += "_"
            array = np.asarray(tensor.array, order="C")
            data = ir.tensor(array, name=name)
            tensor.value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(data.dtype), const_value=data
            )
            self.stored[name] = tensor.value
        return tensor.value

    def length(self, dimension: Dimension) -> ir.Value:
        """Returns the size of an axis as an int64 vector of length 1, which the ONNX graph computes if the size is
        dynamic.
        """
        if isinstance(dimension, int | np.integer):
            return self.integers([int(dimension)])
        text = str(dimension)
        if text not in self.lengths:
            self.lengths[text] = self._computed(ast.parse(text.replace("^", "**"), mode="eval").body)
        return self.lengths[text]

    def _computed(self, node: ast.expr) -> ir.Value:
        kinds = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
        functions = {"max": "Max", "min": "Min", "floordiv": "Div", "mod": "Mod"}
        match node:
            case ast.Name():
                return self.lengths[node.id]
            case ast.Constant(value=int(number)):
                return self.integers([number])
            case ast.UnaryOp(op=ast.USub()):
                return self.op("Neg", self._computed(node.operand))
            case ast.BinOp() if type(node.op) in kinds:
                return self.op(kinds[type(node.op)], self._computed(node.left), self._computed(node.right))
            case ast.Call(func=ast.Name(id=name)) if name in functions:
                return self.op(functions[name], *map(self._computed, node.args))
        raise InputError(f"a length of {ast.unparse(node)} cannot be computed in an ONNX program")

    def shape(self, dimensions: Sequence[Dimension]) -> ir.Value:
        """Returns a shape as an int64 vector, which the ONNX graph computes if any of the sizes is dynamic."""
        if all(isinstance(dimension, int | np.integer) for dimension in dimensions):
            return self.integers([int(dimension) for dimension in dimensions])
        return self.op("Concat", *map(self.length, dimensions), axis=0)

    def broadcast_to(self, tensor: Tensor, shape: Sequence[Dimension]) -> Tensor:
        """Broadcasts a tensor to its full shape. Needed because axes along which a tensor is broadcast may have size 1
        in the graph.
        """
        if tuple(tensor.shape) == tuple(shape):
            return tensor
        if tensor.array is not None and is_known(shape):
            return self.constant(np.broadcast_to(tensor.array, shape))
        return self.tensor(self.op("Expand", self.value(tensor), self.shape(shape)), shape, tensor.dtype)

    def tensor(self, value: ir.Value, shape: Sequence[Dimension], dtype: Any) -> Tensor:
        """Creates a tensor of the given shape and type from an ONNX value that the graph computes."""
        return Tensor(None, value, tuple(shape), np.dtype(dtype))

    def cast(self, value: ir.Value, dtype: Any) -> ir.Value:
        """Adds an operation that casts an ONNX value to another data type. Returns the result."""
        return self.op("Cast", value, to=ir.DataType.from_numpy(np.dtype(dtype)))

    def evaluate(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Adds all operations of a jaxpr to the graph. Returns the output tensors.

        Args:
          jaxpr: The jaxpr to convert.
          constants: Values of the jaxpr's constants.
          inputs: Input tensors of the jaxpr.

        Raises:
          InputError: If an operation cannot be converted.
        """
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, array in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = self.constant(np.asarray(array, variable.aval.dtype))

        def read(atom):
            shaped: Any = atom.aval
            literal = isinstance(atom, jax.extend.core.Literal)
            return self.constant(np.asarray(atom.val, shaped.dtype)) if literal else known[atom]

        for equation in jaxpr.eqns:
            name, given = equation.primitive.name, [read(atom) for atom in equation.invars]
            if (found := _folded(equation, given)) is not None:
                found = [self.constant(array) for array in found]
            elif name in self.operations:
                found = self.operations[name](self, equation, *given)
                found = found if isinstance(found, list) else [found]
            else:
                raise InputError(f"the JAX operation {name} cannot be converted to ONNX")
            known |= zip(equation.outvars, found, strict=True)
        return [read(atom) for atom in jaxpr.outvars]


def is_known(shape: Sequence[Dimension]) -> bool:
    """Returns whether all axes of a shape have a fixed size, rather than a symbolic one."""
    return all(isinstance(dimension, int | np.integer) for dimension in shape)


NESTED_PRIMITIVES = (
    "jit",
    "pjit",
    "scan",
    "while",
    "cond",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "closed_call",
)
"""Names of JAX primitives that contain a nested jaxpr, such as loops. Constant folding does not evaluate them, even if
all their inputs are constants. Their inner operations are converted or folded one by one.
"""


VIEWS: Mapping[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "reshape": lambda array, params: array.reshape(params["new_sizes"]),
    "squeeze": lambda array, params: np.squeeze(array, params["dimensions"]),
    "transpose": lambda array, params: array.transpose(params["permutation"]),
    "slice": lambda array, params: array[
        tuple(map(slice, params["start_indices"], params["limit_indices"], params["strides"] or [1] * array.ndim))
    ],
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "sharding_constraint"), lambda array, params: array),
}
"""Maps names of JAX operations with one input to functions that compute them as NumPy views, without copying the
array.
"""


def _folded(equation: Any, given: Sequence[Tensor]) -> list[np.ndarray] | None:
    """Evaluates an operation during the conversion, if its inputs are known and its shapes are fixed. Returns the
    output arrays, or None if it cannot be evaluated.

    Args:
      equation: Equation of the jaxpr.
      given: Input tensors of the equation.
    """
    shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    name = equation.primitive.name
    if name in NESTED_PRIMITIVES or name == "dim_as_value" or not all(map(is_known, shapes)):
        return None
    arrays = []
    for tensor, atom in zip(given, equation.invars, strict=True):
        if tensor.array is None:
            return None
        arrays.append(np.broadcast_to(tensor.array, atom.aval.shape))
    if name in VIEWS:  # Avoids a copy, because parameters may be large.
        return [VIEWS[name](arrays[0], equation.params)]
    found = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    return [np.asarray(array) for array in (found if equation.primitive.multiple_results else [found])]
