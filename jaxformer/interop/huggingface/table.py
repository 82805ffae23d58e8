"""Tables that map the tensors of a model family to parameters. Import and export use the same table.

A row has the path of a parameter, the name of the tensor in transformers, and the rearrangement of axes. Our stacked
blocks have a leading layer axis; transformers has one tensor per layer, with its number in place of `{l}` in the name,
or one per layer and expert, with the number of the expert in place of `{e}`.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np

from jaxformer.errors import InputError

SHOWN = 8
"""Maximum number of names that a message lists."""


@dataclasses.dataclass(frozen=True)
class ParamMapping:
    """Maps one tensor of transformers, or one per layer if its name has `{l}`, to our parameters."""

    ours: str | tuple[str, ...]
    """Path of the parameter, such as `transformer/blocks/mlp/up/kernel`. Several paths if the tensor contains several
    parameters, which are then along the first axis of the rearranged tensor."""
    theirs: str
    """Name of the tensor in transformers."""
    pattern: str = ""
    """Rearrangement of the tensor's axes in einops notation, such as `(h k) d -> d h k`. Empty if the axes are the
    same."""
    copies: tuple[str, ...] = ()
    """Other names of a tied tensor. It is stored under one or several of these names; all stored values must be
    equal."""
    tied_to: str = ""
    """Name of the tensor to read if this one is not stored."""
    requires: str = ""
    """Path of a parameter that the model must have for the row to apply."""
    excludes: str = ""
    """Path of a parameter that the model must not have for the row to apply."""
    first_layer: int = 0
    """First layer that has the tensor, if its name has `{l}`. Our parameters of earlier layers have no effect."""

    def applies(self, paths: Container[str]) -> bool:
        """Returns whether a model with parameters at these paths has the tensor."""
        other = (not self.requires or self.requires in paths) and self.excludes not in paths
        return other and any(path in paths for path in self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a model family. A row applies if the model has its parameters."""

    rows: tuple[ParamMapping, ...]
    """Mappings of the tensors that are parameters."""
    known: Mapping[str, str | Callable[[tuple[int, ...]], np.ndarray]] = dataclasses.field(default_factory=dict)
    """Names (with `{l}` for a number) of tensors that may be stored although they are not parameters. Maps each to the
    reason, or to a function that computes the expected values from the shape."""
    prefix: str = ""
    """Prefix of tensor names that is missing in models without heads."""
    others: tuple["Table", ...] = ()
    """Other layouts of the same tensors, which imports accept. Exports write this one."""

    def layout(self, names: Container[str]) -> "Table":
        """Returns the table for the layout of tensors with these names."""

        def found(table):
            first = [row.theirs.format(l=row.first_layer, e=0) for row in table.rows]
            return sum(name in names or name.removeprefix(table.prefix) in names for name in first)

        return max((self, *self.others), key=found)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """Maps one tensor of transformers to the parameters that it contains."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    """Paths of the parameters, or of the stacked parameters if it contains one of their layers or experts."""
    index: tuple[int, ...]
    """Indices of the layer and of the expert in the first axes of stacked parameters. () if they are not stacked."""
    copies: tuple[str, ...]
    """Other names of a tied tensor, see `ParamMapping.copies`."""
    tied_to: str
    """Name of the tensor to read if this one is not stored."""
    split: tuple[int, ...]
    """Shape of the tensor after splitting its axes into those of the parameters."""
    order: tuple[int, ...]
    """Axis permutation from the split tensor to the parameters."""

    def to_ours(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Returns views of a tensor, one per path."""
        arranged = tensor.reshape(self.split).transpose(self.order)
        return list(arranged) if len(self.paths) > 1 else [arranged]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the tensor for the given arrays, one per path. It is a copy unless the order of axes is the same."""
        arranged = np.stack(arrays) if len(self.paths) > 1 else arrays[0]
        return np.ascontiguousarray(arranged.transpose(np.argsort(self.order))).reshape(self.shape)


def slots(table: Table, shapes: Mapping[str, tuple[int, ...]], headless: bool = False) -> list[TensorMapping]:
    """Returns the tensors that a model has, in the order of the table.

    Args:
      table: Table of the model family.
      shapes: Shapes of the parameters, by path.
      headless: Whether tensor names lack the prefix of the table.

    Raises:
      ValueError: If the table does not cover each parameter exactly once.
    """
    found, covered = [], []
    for row in table.rows:
        if row.applies(shapes):
            found += _of_row(row, shapes)
            covered += row.paths
    if sorted(covered) != sorted(shapes):
        wrong = sorted(set(shapes) ^ set(covered)) or sorted(path for path in shapes if covered.count(path) > 1)
        raise ValueError(f"the table has not exactly one row for {wrong[0]}")
    if not headless:
        return found

    def cut(name):
        return name.removeprefix(table.prefix)

    return [
        dataclasses.replace(slot, name=cut(slot.name), copies=tuple(map(cut, slot.copies)), tied_to=cut(slot.tied_to))
        for slot in found
    ]


def is_known(table: Table, name: str) -> bool:
    """Returns whether a tensor name is known not to be a parameter."""
    patterns = [re.escape(known).replace(r"\{l\}", r"\d+") for known in table.known]
    patterns += [pattern.removeprefix(re.escape(table.prefix)) for pattern in patterns]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Stored tensors for all slots."""

    slots: list[TensorMapping]
    """All slots."""
    names: list[str]
    """Name of the stored tensor of each slot."""
    copies: list[tuple[str, str]]
    """Pairs of names of stored tensors that must have equal values."""


def match(
    table: Table, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], where: str
) -> Sources:
    """Finds the stored tensor of each slot.

    Args:
      table: Table of the model family.
      shapes: Shapes of the parameters, by path.
      stored: Shapes of the stored tensors, by name.
      where: Start of error messages.

    Raises:
      InputError: If tensors are missing, unknown, or have another shape. The message lists them.
    """
    wanted = slots(table, shapes, is_headless(table, stored))
    own = {slot.name for slot in wanted}
    names, copies, used = [], [], set()
    for slot in wanted:
        # An untied head is not a copy of the embeddings.
        others = [name for name in slot.copies if name in stored and name not in own]
        every = ([slot.name] if slot.name in stored else []) + others
        every = every or ([slot.tied_to] if slot.tied_to in stored else [])
        names.append(every[0] if every else slot.name)
        copies += [(every[0], other) for other in every[1:]]
        used.update(every)
    problems = {
        "missing": [name for name in names if name not in stored],
        "not known": sorted(name for name in stored if name not in used and not is_known(table, name)),
        "of another shape": [
            f"{name} {list(stored[name])}, expected {list(slot.shape)}"
            for slot, name in zip(wanted, names, strict=True)
            if name in stored and tuple(stored[name]) != slot.shape
        ],
    }
    parts = [f"{what}: {_listed(found)}" for what, found in problems.items() if found]
    if parts:
        raise InputError(f"{where}: tensors {'; '.join(parts)}")
    return Sources(wanted, names, copies)


def is_headless(table: Table, names: Mapping[str, object]) -> bool:
    """Returns whether the names lack the prefix of the table, as in a model without heads."""
    return not any(name.startswith(table.prefix) for name in names)


def _of_row(row: ParamMapping, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[TensorMapping]:
    missing = [path for path in row.paths if path not in shapes]
    if missing:
        raise ValueError(f"the table's row {row.theirs} has no {missing[0]}")
    shape, count = shapes[row.paths[0]], len(row.paths)
    numbers: list[Sequence[int]] = []
    for letter, first in (("{l}", row.first_layer), ("{e}", 0)):
        if letter in row.theirs:
            numbers.append(range(first, shape[0]))
            shape = shape[1:]
    if count > 1:
        shape = (count, *shape)
    groups, order = _parsed(row.pattern, len(shape))
    sizes = [0] * len(shape)
    for index, axis in enumerate(order):
        sizes[axis] = shape[index]
    theirs = tuple(int(np.prod([sizes[axis] for axis in group])) for group in groups)
    for index in itertools.product(*numbers):
        named = dict(zip("le", index, strict=False))
        name, *copies = (each.format(**named) if index else each for each in (row.theirs, *row.copies))
        yield TensorMapping(name, theirs, row.paths, index, tuple(copies), row.tied_to, tuple(sizes), order)


def _parsed(pattern: str, axes: int) -> tuple[list[list[int]], tuple[int, ...]]:
    """Parses a pattern.

    Returns the split axes of each tensor axis, and the permutation from them to the parameter's axes. An axis `1` of
    the tensor has no counterpart in the parameter.
    """
    if not pattern:
        return [[axis] for axis in range(axes)], tuple(range(axes))
    theirs, ours = (side.split() for side in pattern.replace("(", "( ").replace(")", " )").split("->"))
    letters = [letter for letter in theirs if letter not in "()1"]
    if sorted(letters) != sorted(ours) or len(ours) != axes:
        raise ValueError(f"{pattern!r}: expected the same axes on both sides, {axes} of them")
    groups, inside = [], False
    for word in theirs:
        if word in "()":
            inside = word == "("
            groups += [[]] if inside else []
        elif word == "1":
            groups.append([])
        elif inside:
            groups[-1].append(letters.index(word))
        else:
            groups.append([letters.index(word)])
    return groups, tuple(letters.index(letter) for letter in ours)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
