"""Tables that map parameters to the tensors of Hugging Face checkpoints, one table per model family. Import and export
use the same table.

A row of a table has the path of a parameter, the name of the tensor in the checkpoint, and the rearrangement of axes.
In jaxformer, the parameters of all blocks are stacked along a leading layer axis. A checkpoint has one tensor per
layer, with the number of the layer in place of `{l}` in the name, or one tensor per layer and expert, with the number
of the expert in place of `{e}`.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np

from jaxformer.errors import InputError

MAX_NAMES = 8
"""Maximum number of tensor names in an error message."""


@dataclasses.dataclass(frozen=True)
class ParamMapping:
    """Row of a table: maps a parameter to a tensor of a Hugging Face checkpoint, or to one tensor per layer if the
    tensor name contains `{l}`.
    """

    ours: str | tuple[str, ...]
    """Path of the parameter in jaxformer, such as `transformer/blocks/mlp/up/kernel`. If the tensor contains several
    parameters, a tuple of their paths. In that case, the rearranged tensor has a leading axis with one entry per
    parameter.
    """
    theirs: str
    """Name of the tensor in the checkpoint."""
    pattern: str = ""
    """Rearrangement of the tensor's axes to the parameter's axes, in einops notation, such as `(h k) d -> d h k`.
    Empty if the axes are the same.
    """
    copies: tuple[str, ...] = ()
    """Other names under which a checkpoint may store the tensor, because several layers share it (tied weights). If it
    is stored under several names, the values must be equal.
    """
    tied_to: str = ""
    """Name of a tensor that is read instead if the checkpoint does not store this one, because the two are tied (share
    their values).
    """
    requires: str = ""
    """Path of a parameter. If set, the mapping applies only to models that have this parameter."""
    excludes: str = ""
    """Path of a parameter. If set, the mapping applies only to models that do not have this parameter."""
    first_layer: int = 0
    """If the tensor name contains `{l}`: index of the first layer for which checkpoints have the tensor. The JAX model
    has the parameter in earlier layers too, but does not use it there.
    """

    def applies(self, paths: Container[str]) -> bool:
        """Returns whether the mapping applies to a model: whether the model has a parameter of the mapping, and meets
        `requires` and `excludes`. `paths` are the paths of all parameters of the model.
        """
        other = (not self.requires or self.requires in paths) and self.excludes not in paths
        return other and any(path in paths for path in self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters that the tensor contains: `ours` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Table:
    """Maps the parameters of a model family to the tensors of its Hugging Face checkpoints. For each model, only the
    rows whose parameters the model has are used.
    """

    rows: tuple[ParamMapping, ...]
    """Mappings of all parameters that a model of the family may have, one per tensor name in the checkpoint."""
    known: Mapping[str, str | Callable[[tuple[int, ...]], np.ndarray]] = dataclasses.field(default_factory=dict)
    """Tensors in checkpoints that are not parameters. Maps the name of each (with `{l}` for the layer number) to a text
    that says what the tensor contains, or to a function that takes its shape and returns the values that an import
    expects.
    """
    prefix: str = ""
    """Prefix of the tensor names, such as `bert.`. In checkpoints of a model without a task head, the names lack it."""
    others: tuple["Table", ...] = ()
    """Tables of checkpoints that store the same parameters in another layout. Imports accept these checkpoints too.
    Exports use the layout of this table.
    """

    def layout(self, names: Container[str]) -> "Table":
        """Selects the table for a checkpoint with the tensor names `names`: this table or one of `others`, whichever
        has the most tensor names in common with it.
        """

        def found(table):
            first = [row.theirs.format(l=row.first_layer, e=0) for row in table.rows]
            return sum(name in names or name.removeprefix(table.prefix) in names for name in first)

        return max((self, *self.others), key=found)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """Maps one tensor of a Hugging Face checkpoint to the parameters, or parts of stacked parameters, that it
    contains.
    """

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    """Paths of the parameters that the tensor contains. If a parameter is stacked, the tensor contains the part of one
    layer or expert.
    """
    index: tuple[int, ...]
    """Indices along the leading axes of stacked parameters: layer, and expert if any. () if the parameters are not
    stacked.
    """
    copies: tuple[str, ...]
    """Other names of the same tensor. See `ParamMapping.copies`."""
    tied_to: str
    """Name of a tensor that is read instead if the checkpoint does not store this one, because the two are tied (share
    their values).
    """
    split: tuple[int, ...]
    """Shape that a stored tensor is reshaped to before its axes are permuted by `order`."""
    order: tuple[int, ...]
    """Permutation of the axes of the reshaped tensor, as for `numpy.transpose`. The result has the axes of the
    parameter.
    """

    def to_ours(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Converts a tensor of a checkpoint to the parameters that it contains. Returns one array per entry of `paths`,
        each a view of the tensor where possible.
        """
        arranged = tensor.reshape(self.split).transpose(self.order)
        return list(arranged) if len(self.paths) > 1 else [arranged]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Converts parameters, one array per entry of `paths`, to the tensor of a checkpoint. The result is a copy
        unless it needs neither a permutation of axes nor the combination of several parameters.
        """
        arranged = np.stack(arrays) if len(self.paths) > 1 else arrays[0]
        return np.ascontiguousarray(arranged.transpose(np.argsort(self.order))).reshape(self.shape)


def tensor_mappings(table: Table, shapes: Mapping[str, tuple[int, ...]], headless: bool = False) -> list[TensorMapping]:
    """Lists the tensors that the checkpoint of a model contains, one per layer and expert, in the order of the table.

    Args:
      table: Table of the model family.
      shapes: Shapes of the parameters, keyed by path.
      headless: Whether the tensor names lack `table.prefix`, as in checkpoints of models without a task head.

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
        dataclasses.replace(one, name=cut(one.name), copies=tuple(map(cut, one.copies)), tied_to=cut(one.tied_to))
        for one in found
    ]


def is_known(table: Table, name: str) -> bool:
    """Returns whether the tensor `name` of a checkpoint is listed in `Table.known`, which means that it is not a
    parameter.
    """
    patterns = [re.escape(known).replace(r"\{l\}", r"\d+") for known in table.known]
    patterns += [pattern.removeprefix(re.escape(table.prefix)) for pattern in patterns]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclasses.dataclass(frozen=True)
class MatchedTensors:
    """Result of `match`: the tensors of a checkpoint from which the parameters of a model are read."""

    mappings: list[TensorMapping]
    """Mappings of all tensors that the model needs, as returned by `tensor_mappings`."""
    names: list[str]
    """For each entry of `mappings`, the name of the tensor in the checkpoint to read."""
    copies: list[tuple[str, str]]
    """Pairs of names of tensors in the checkpoint that must have equal values, because they are copies of one tied
    tensor.
    """


def match(
    table: Table, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], where: str
) -> MatchedTensors:
    """Finds the tensors of a checkpoint from which the parameters of a model are read.

    Args:
      table: Table of the model family.
      shapes: Shapes of the parameters, keyed by path.
      stored: Shapes of the tensors in the checkpoint, keyed by name.
      where: Text at the start of error messages, such as the path of the checkpoint.

    Raises:
      InputError: If the checkpoint lacks tensors, has unknown ones, or has tensors of a shape that does not match the
        model. The message lists them.
    """
    wanted = tensor_mappings(table, shapes, is_headless(table, stored))
    own = {mapping.name for mapping in wanted}
    names, copies, used = [], [], set()
    for mapping in wanted:
        # An untied head is not a copy of the embeddings.
        others = [name for name in mapping.copies if name in stored and name not in own]
        every = ([mapping.name] if mapping.name in stored else []) + others
        every = every or ([mapping.tied_to] if mapping.tied_to in stored else [])
        names.append(every[0] if every else mapping.name)
        copies += [(every[0], other) for other in every[1:]]
        used.update(every)
    problems = {
        "missing": [name for name in names if name not in stored],
        "not known": sorted(name for name in stored if name not in used and not is_known(table, name)),
        "of another shape": [
            f"{name} {list(stored[name])}, expected {list(mapping.shape)}"
            for mapping, name in zip(wanted, names, strict=True)
            if name in stored and tuple(stored[name]) != mapping.shape
        ],
    }
    parts = [f"{what}: {_listed(found)}" for what, found in problems.items() if found]
    if parts:
        raise InputError(f"{where}: tensors {'; '.join(parts)}")
    return MatchedTensors(wanted, names, copies)


def is_headless(table: Table, names: Mapping[str, object]) -> bool:
    """Returns whether no tensor name starts with the prefix of the table, as in checkpoints of models without a task
    head.
    """
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
    """Parses the rearrangement of axes in a `ParamMapping`, which is in einops notation.

    Returns a list and a permutation. The list contains one list for each axis of the tensor: the indices of the axes
    that it is split into (none for an axis `1`). The permutation puts the split axes into the order of the parameter.

    Args:
      pattern: The rearrangement, such as `(h k) d -> d h k`.
      axes: Number of axes after the splitting.
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
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
