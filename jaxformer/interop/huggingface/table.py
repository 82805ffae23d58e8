"""How a family's tensors and our parameters correspond: one table, which import and export both read.

A row says where an array of ours stands in our tree, what theirs is called, and how theirs is rearranged into ours.
Our stacked blocks have a leading axis of layers; theirs are a tensor a layer, with its number for `{l}` in the name.
"""

import dataclasses
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np

from jaxformer.errors import InputError

SHOWN = 8
"""Names that a message lists, at most."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of theirs (one a layer, where its name has `{l}`), and what of ours it is."""

    ours: str | tuple[str, ...]
    """Path in our tree, such as `transformer/blocks/mlp/up/kernel`; several, where theirs holds several of ours: the
    first axis of the rearranged tensor goes over them."""
    theirs: str
    """Its name."""
    pattern: str = ""
    """Their axes and ours, as einops has them: `(h k) d -> d h k`; empty where they are the same."""
    copies: tuple[str, ...] = ()
    """Other names under which it may be stored, again (then they must be the same) or instead: tied tensors'."""
    otherwise: str = ""
    """What it is a copy of where it is not stored."""
    beside: str = ""
    """A path that the model must have too, or the row does not count."""
    unless: str = ""
    """A path that the model must not have."""

    def counts(self, paths: Container[str]) -> bool:
        """Whether a model with these arrays has this tensor."""
        other = (not self.beside or self.beside in paths) and self.unless not in paths
        return other and any(path in paths for path in self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of ours."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of a family; of a model those count whose arrays it has."""

    rows: tuple[Row, ...]
    """What is a parameter of ours."""
    known: Mapping[str, str | Callable[[tuple[int, ...]], np.ndarray]] = dataclasses.field(default_factory=dict)
    """Names, with `{l}` for a number, of what may be stored and is no parameter, and why; or a function that computes
    of its shape what it must be."""
    prefix: str = ""
    """What the names of a model without heads lack."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of theirs, and its place in our arrays."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    paths: tuple[str, ...]
    """Our arrays that it is (part of)."""
    layer: int | None
    """Its index in their first axis."""
    copies: tuple[str, ...]
    """As in its row."""
    otherwise: str
    """As in its row."""
    split: tuple[int, ...]
    """The shape of theirs with every axis of ours apart."""
    order: tuple[int, ...]
    """Which of those axes is each of ours."""

    def to_ours(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Views of a tensor of theirs, one for each path."""
        arranged = tensor.reshape(self.split).transpose(self.order)
        return list(arranged) if len(self.paths) > 1 else [arranged]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of theirs, from what each path has of it; a copy, unless the order is the same."""
        arranged = np.stack(arrays) if len(self.paths) > 1 else arrays[0]
        return np.ascontiguousarray(arranged.transpose(np.argsort(self.order))).reshape(self.shape)


def slots(table: Table, shapes: Mapping[str, tuple[int, ...]], bare: bool = False) -> list[Slot]:
    """The tensors that a model has, in the table's order.

    Args:
      table: the family's.
      shapes: of our arrays, by path.
      bare: whether their names lack the table's prefix.

    Raises:
      ValueError: the table does not cover our arrays, each once.
    """
    found = []
    for row in table.rows:
        if row.counts(shapes):
            found += _of_row(row, shapes)
    covered = [path for slot in found if not slot.layer for path in slot.paths]
    if sorted(covered) != sorted(shapes):
        wrong = sorted(set(shapes) ^ set(covered)) or sorted(path for path in shapes if covered.count(path) > 1)
        raise ValueError(f"the table has not exactly one row for {wrong[0]}")
    if not bare:
        return found

    def cut(name):
        return name.removeprefix(table.prefix)

    return [
        dataclasses.replace(
            slot, name=cut(slot.name), copies=tuple(map(cut, slot.copies)), otherwise=cut(slot.otherwise)
        )
        for slot in found
    ]


def is_known(table: Table, name: str) -> bool:
    """Whether something stored under this name is known to be no parameter."""
    patterns = [re.escape(known).replace(r"\{l\}", r"\d+") for known in table.known]
    patterns += [pattern.removeprefix(re.escape(table.prefix)) for pattern in patterns]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Which stored tensor is read for each slot."""

    slots: list[Slot]
    """All slots."""
    names: list[str]
    """The stored name of each."""
    copies: list[tuple[str, str]]
    """Stored names that must hold the same."""


def match(
    table: Table, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], where: str
) -> Sources:
    """Finds what is stored for each slot.

    Args:
      table: the family's.
      shapes: of our arrays, by path.
      stored: shapes of what is stored, by name.
      where: what a message begins with.

    Raises:
      InputError: tensors are missing, have another shape or belong nowhere; lists them.
    """
    bare = is_bare(table, stored)
    wanted = slots(table, shapes, bare)
    own = {slot.name for slot in wanted}
    names, copies, used = [], [], set()
    for slot in wanted:
        # A head of its own is no copy of the embeddings.
        others = [name for name in slot.copies if name in stored and name not in own]
        every = ([slot.name] if slot.name in stored else []) + others
        every = every or ([slot.otherwise] if slot.otherwise in stored else [])
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
    told = [f"{what}: {_listed(found)}" for what, found in problems.items() if found]
    if told:
        raise InputError(f"{where}: tensors {'; '.join(told)}")
    return Sources(wanted, names, copies)


def is_bare(table: Table, names: Mapping[str, object]) -> bool:
    """Whether the names lack the table's prefix, as those of a model without heads do."""
    return not any(name.startswith(table.prefix) for name in names)


def _of_row(row: Row, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Slot]:
    missing = [path for path in row.paths if path not in shapes]
    if missing:
        raise ValueError(f"the table's row {row.theirs} has no {missing[0]}")
    shape, count = shapes[row.paths[0]], len(row.paths)
    layers: Sequence[int | None] = [None]
    if "{l}" in row.theirs:
        layers, shape = range(shape[0]), shape[1:]
    if count > 1:
        shape = (count, *shape)
    groups, order = _parsed(row.pattern, len(shape))
    sizes = [0] * len(shape)
    for index, axis in enumerate(order):
        sizes[axis] = shape[index]
    theirs = tuple(int(np.prod([sizes[axis] for axis in group])) for group in groups)
    for layer in layers:
        names = (row.theirs, *row.copies)
        name, *copies = names if layer is None else [each.replace("{l}", str(layer)) for each in names]
        yield Slot(name, theirs, row.paths, layer, tuple(copies), row.otherwise, tuple(sizes), order)


def _parsed(pattern: str, axes: int) -> tuple[list[list[int]], tuple[int, ...]]:
    """Which axes each of their axes is made of, and which of those axes is each of ours.

    An axis of theirs named 1 is none of ours.
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
