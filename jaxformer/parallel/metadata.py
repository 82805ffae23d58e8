"""Metadata of parameters: the names of their axes, and which of these axes a linear layer sums over.

The metadata are defined when a parameter is initialised: initializers wrapped by `with_axes` return parameters in a
`Boxed`. Sharding, optimizers and LoRA read the metadata of each `Boxed`, or a `ParameterInfo` created from it, so that
they do not guess the role of an axis from the parameter's name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import flax.struct
import jax

BATCH = "le"
"""Letters of the layer axis (`l`) and the expert axis (`e`). Along these axes, a parameter array stacks the independent
parameters of several layers or experts.
"""


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """Names of a parameter's axes, and how many of them a linear layer sums over."""

    axes: str
    """One letter per dimension, for example `ldhk` for layers, embed, heads and head_dim. See `sharding.AXES`."""
    contracted: int = 0
    """Number of axes that a linear layer sums over (its input axes). They are the first axes after those of layers and
    experts. 0 if the parameter is not a kernel.
    """

    @property
    def is_stacked(self) -> bool:
        """Whether the first axis is the layer axis, so that the array contains the parameters of several layers."""
        return self.axes.startswith("l")

    @property
    def is_kernel(self) -> bool:
        """Whether the parameter is the kernel of a linear layer."""
        return self.contracted > 0

    @property
    def batch(self) -> int:
        """Number of leading axes that stack the parameters of several layers or experts."""
        return len(self.axes) - len(self.axes.lstrip(BATCH))

    @property
    def rows(self) -> tuple[int, ...]:
        """Indices of a kernel's input axes, which a linear layer sums over. They form the rows if the kernel is viewed
        as a matrix.
        """
        return tuple(range(self.batch, self.batch + self.contracted))

    @property
    def columns(self) -> tuple[int, ...]:
        """Indices of a kernel's output axes. They form the columns if the kernel is viewed as a matrix."""
        return tuple(range(self.batch + self.contracted, len(self.axes)))

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a kernel as a matrix, (layers, experts, rows, columns): all input axes are merged into
        one, and all output axes into another. Axes of layers and experts are kept if there are any. Other parameters
        keep their shape.
        """
        if not self.is_kernel:
            return shape
        merged = (math.prod(shape[axis] for axis in axes) for axes in (self.rows, self.columns))
        return (*shape[: self.batch], *merged)


@flax.struct.dataclass
class Boxed(nn.meta.AxisMetadata):
    """Parameter array with the names of its axes, one letter per axis.

    Replaces Flax's `nn.Partitioned`, which would request shardings over mesh axes with these names.
    """

    value: Any
    """Array with the values of the parameter."""
    letters: str = flax.struct.field(pytree_node=False)
    """Names of the array's axes: one letter per axis, as defined in `sharding.AXES`."""
    contracted: int = flax.struct.field(pytree_node=False, default=0)
    """Number of axes that a linear layer sums over. See `ParameterInfo.contracted`."""

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Boxed":
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Mapping[str, str]) -> "Boxed":
        """Returns a copy with the axis letter `params["letter"]` inserted at `index`. The array does not change.

        Flax calls this method when a transformation such as `nn.scan` stacks parameters along a new axis.
        """
        return dataclasses.replace(self, letters=self.letters[:index] + params["letter"] + self.letters[index:])

    def remove_axis(self, index: int, params: Mapping[str, str]) -> "Boxed":
        """Returns a copy without the axis letter at `index`, the inverse of `add_axis`."""
        del params
        return dataclasses.replace(self, letters=self.letters[:index] + self.letters[index + 1 :])


def is_boxed(leaf: Any) -> bool:
    """Returns whether a node of a tree is a `Boxed` parameter. Pass this function as `is_leaf` to `jax.tree.map`."""
    return isinstance(leaf, Boxed)


def with_axes(init: nn.initializers.Initializer, letters: str, contracted: int = 0) -> nn.initializers.Initializer:
    """Wraps an initializer so that it returns a `Boxed` parameter.

    Args:
      init: the initializer.
      letters: one letter per dimension (see `sharding.AXES`).
      contracted: number of input axes, which the linear layer sums over, if the parameter is a kernel. 0 for other
        parameters.
    """
    return lambda *args: Boxed(init(*args), letters, contracted)


def parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> jax.Array:
    """Returns a parameter of a module, which is created if it does not exist yet: `module.param(name, init, shape)`,
    but faster.

    Flax traces the initializer of a parameter that exists, to learn the shape that it should have. In small models this
    takes a fifth of the time of tracing. The shape is known here.

    Raises:
      ScopeParamShapeError: If the parameter exists and has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value = nn.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise flax.errors.ScopeParamShapeError(name, "/" + "/".join(module.path), value.shape, shape)
    return value


def parameter_info(boxed: Any) -> dict[str, ParameterInfo]:
    """Converts a tree of `Boxed` parameters to a dict that maps the path of each parameter, such as `embeddings/token`,
    to its `ParameterInfo`. Raises ValueError if a leaf is not a `Boxed`.
    """
    found = {}
    for keys, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_boxed):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not is_boxed(box):
            raise ValueError(f"{path}: its initializer names no axes; expected with_axes(init, letters)")
        found[path] = ParameterInfo(box.letters, box.contracted)
    return found
