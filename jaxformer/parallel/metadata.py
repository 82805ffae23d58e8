"""Metadata of parameters, kept from their initialisation: their axes, and which of them a linear map contracts.

Initializers wrapped by `with_axes` return parameters in a `Boxed`. Sharding, optimizers and LoRA read the boxes, or the
`ParameterInfo` made from them, so that nothing about a parameter is guessed from its name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax

BATCH = "le"
"""Axes whose entries are parameters of their own: layers and experts."""


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """The axes of a parameter."""

    axes: str
    """One letter of the glossary in `sharding` a dimension, `ldhk` for example."""
    contracted: int = 0
    """Axes that the parameter's linear map sums over, after those of layers and experts; 0 if it is not a kernel."""

    @property
    def is_stacked(self) -> bool:
        """Whether the first axis is that of the layers."""
        return self.axes.startswith("l")

    @property
    def is_kernel(self) -> bool:
        """Whether the parameter is the kernel of a linear map."""
        return self.contracted > 0

    @property
    def batch(self) -> int:
        """Leading axes of layers and experts."""
        return len(self.axes) - len(self.axes.lstrip(BATCH))

    @property
    def rows(self) -> tuple[int, ...]:
        """The contracted axes of a kernel."""
        return tuple(range(self.batch, self.batch + self.contracted))

    @property
    def columns(self) -> tuple[int, ...]:
        """The axes of a kernel that its map's result has."""
        return tuple(range(self.batch + self.contracted, len(self.axes)))

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a kernel with its rows merged into one axis and its columns into another; others stay."""
        if not self.is_kernel:
            return shape
        merged = (math.prod(shape[axis] for axis in axes) for axes in (self.rows, self.columns))
        return (*shape[: self.batch], *merged)


@flax.struct.dataclass
class Boxed(nn.meta.AxisMetadata):
    """A new parameter with its axes; Linen's own box would ask for shardings by names that no mesh has."""

    value: Any
    """The parameter."""
    letters: str = flax.struct.field(pytree_node=False)
    """One letter a dimension."""
    contracted: int = flax.struct.field(pytree_node=False, default=0)
    """As of `ParameterInfo`."""

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Boxed":
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Mapping[str, str]) -> "Boxed":
        """The box of a value with one more axis, of the letter `params["letter"]`."""
        return dataclasses.replace(self, letters=self.letters[:index] + params["letter"] + self.letters[index:])

    def remove_axis(self, index: int, params: Mapping[str, str]) -> "Boxed":
        """The box of a value with one axis less."""
        del params
        return dataclasses.replace(self, letters=self.letters[:index] + self.letters[index + 1 :])


def is_boxed(leaf: Any) -> bool:
    """Whether this is a parameter in its box; for `jax.tree.map(is_leaf=...)`."""
    return isinstance(leaf, Boxed)


def with_axes(init: nn.initializers.Initializer, letters: str, contracted: int = 0) -> nn.initializers.Initializer:
    """An initializer whose parameter carries its axes.

    Args:
      init: the initializer.
      letters: one letter of the glossary a dimension.
      contracted: how many axes the parameter's linear map contracts, where it is a kernel.
    """
    return lambda *args: Boxed(init(*args), letters, contracted)


def parameter_info(boxed: Any) -> dict[str, ParameterInfo]:
    """The axes of each parameter of a tree of boxes, by its path, such as `embeddings/token`."""
    found = {}
    for keys, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_boxed):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not is_boxed(box):
            raise ValueError(f"{path}: its initializer names no axes; expected with_axes(init, letters)")
        found[path] = ParameterInfo(box.letters, box.contracted)
    return found
