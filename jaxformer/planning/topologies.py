"""Parses topology names, such as `v5p:4x4x4`, `2xv5e:16x16` and `h100:64`, and describes how devices are connected."""

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from jaxformer.errors import InputError
from jaxformer.planning.chips import CHIPS, Chip

PATTERN = re.compile(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)")
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""Shapes of the slices that Google offers for TPU types whose network is a two-dimensional torus, in chips."""
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Shapes, in chips, of the slices smaller than 4x4x4 for TPU types whose network is a three-dimensional torus. Larger
slices consist of cubes of 4x4x4.
"""
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""Maps each TPU type whose network is a three-dimensional torus to the maximum number of chips per slice."""
RING = 16
"""Minimum length (in chips) of a dimension of a two-dimensional network for its chips to be connected as a ring. In
shorter dimensions, they are connected as a line.
"""
CUBE = 4
"""Length in chips of the sides of a cube. Slices with a three-dimensional torus are built from such cubes."""
NODES = 1024
"""Maximum number of GPU nodes that a topology name can request."""

DeviceLocation = tuple[int, tuple[int, ...]]
"""Location of a device: the index of its TPU slice or GPU node, and its coordinates within it."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """How the devices of a communicating group are connected, which determines the networks and links that their
    collective operations use.
    """

    size: int
    """Number of devices in the group. They communicate only with each other."""
    slices_or_nodes: int
    """Number of TPU slices or GPU nodes that contain devices of the group."""
    share: float
    """Fraction of a device's fast links that the group can use. On a torus, a device uses two links along each
    dimension in which the group extends, or one link if the group does not cover a whole ring.
    """

    @property
    def within(self) -> float:
        """Mean number of devices of the group per TPU slice or GPU node."""
        return self.size / self.slices_or_nodes


@dataclasses.dataclass(frozen=True)
class Topology:
    """Hardware to plan for: one or more slices of TPUs, or nodes of GPUs."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    """Number of chips along each dimension of a TPU slice. For GPUs, a tuple with one entry, the number of GPUs per
    node.
    """
    slices_or_nodes: int = 1
    """Number of TPU slices or GPU nodes. The slow network connects them."""

    @property
    def size(self) -> int:
        """Total number of devices."""
        return self.slices_or_nodes * math.prod(self.shape) * self.chip.devices

    def is_ring(self, dimension: int) -> bool:
        """Returns whether the chips along a dimension of a TPU slice are connected as a ring. Otherwise, they are
        connected as a line.
        """
        if self.chip.dimensions == 2:
            return self.shape[dimension] >= RING
        return all(size % CUBE == 0 for size in self.shape)

    def reach(self, places: Iterable[DeviceLocation]) -> Reach:
        """Determines how the devices of a group are connected. `places` are the locations of these devices."""
        places = list(places)
        units = {unit for unit, _ in places}  # Slices or nodes.
        if self.chip.dimensions == 1:
            return Reach(len(places), len(units), 1.0)
        first = [place for unit, place in places if unit == places[0][0]]
        used = 0
        for dimension, size in enumerate(self.shape):
            extent = len({place[dimension] for place in first})
            used += 0 if extent == 1 else 2 if extent == size and self.is_ring(dimension) else 1
        # Two devices of the same chip communicate without using links.
        return Reach(len(places), len(units), used / (2 * self.chip.dimensions) or 1.0)


def parse(name: str) -> Topology:
    """Parses a topology name: `CHIP:SHAPE` for a TPU slice, `NxCHIP:SHAPE` for N slices, or `CHIP:COUNT` for GPUs.

    Raises:
      InputError: If the name is invalid, or no such hardware is offered. The message suggests similar names.
    """
    found = PATTERN.fullmatch(name.strip().lower())
    if found is None:
        raise InputError(
            f"--topology {name}: expected CHIP:SHAPE such as v5p:4x4x4, several slices such as 2xv5e:16x16, or GPUs "
            "such as h100:64"
        )
    several, kind, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, 1)
        raise InputError(
            f"--topology {name}: no figures of {kind!r}; "
            + (f"perhaps {near[0]}; " if near else "")
            + f"expected one of {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if several < 1:
        raise InputError(f"--topology {name}: expected at least one slice")
    return _gpus(name, chip, several, shape) if chip.platform == "gpu" else _slices(name, chip, several, shape)


def _gpus(name: str, chip: Chip, several: int, shape: tuple[int, ...]) -> Topology:
    count = several * math.prod(shape)
    nodes = -(-count // chip.gpus_per_node)
    if len(shape) > 1 or several > 1 or not 1 <= count <= chip.gpus_per_node * NODES:
        raise InputError(f"--topology {name}: expected the number of GPUs, such as {chip.name}:{chip.gpus_per_node}")
    if nodes == 1 and chip.gpus_per_node % count == 0:
        return Topology(name, chip, (count,))
    if count % chip.gpus_per_node:
        low, high = chip.gpus_per_node * (nodes - 1), chip.gpus_per_node * nodes
        near = [max(size for size in (1, 2, 4, 8) if size < count), chip.gpus_per_node] if nodes == 1 else [low, high]
        raise InputError(
            f"--topology {name}: a node has {chip.gpus_per_node} GPUs; expected 1, 2, 4 or whole nodes: nearest "
            + " and ".join(f"{chip.name}:{size}" for size in near)
        )
    return Topology(name, chip, (chip.gpus_per_node,), nodes)


def _slices(name: str, chip: Chip, several: int, shape: tuple[int, ...]) -> Topology:
    known = shapes(chip)
    in_order = tuple(sorted(shape)) if chip.dimensions == 2 else shape
    if in_order not in known:
        prefix = f"{several}x" if several > 1 else ""
        near = " and ".join(f"{prefix}{chip.name}:{_text(one)}" for one in _nearest(shape, known))
        raise InputError(f"--topology {name}: Google offers no such slice; nearest {near}")
    return Topology(name, chip, in_order, several)


@functools.cache
def shapes(chip: Chip) -> frozenset[tuple[int, ...]]:
    """Returns the shapes of all slices that Google offers for a TPU type, in chips."""
    if chip.dimensions == 2:
        return frozenset(tuple(map(int, shape.split("x"))) for shape in FLAT)
    small = {tuple(map(int, shape.split("x"))) for shape in SMALL}
    sizes = range(CUBE, LARGEST[chip.name] // CUBE**2 + 1, CUBE)
    cubes = itertools.combinations_with_replacement([size for size in sizes if size <= 28], 3)
    return frozenset(small | {cube for cube in cubes if math.prod(cube) <= LARGEST[chip.name]})


def _nearest(shape: Sequence[int], known: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns the two shapes in `known` that are most similar to `shape`, judged by their number of chips and, if that
    is equal, by the lengths of their dimensions.
    """
    wanted, count = sorted(shape), max(1, math.prod(shape))

    def distance(other: tuple[int, ...]) -> tuple[float, float]:
        unlike = sum(abs(a - b) for a, b in itertools.zip_longest(wanted, sorted(other), fillvalue=1))
        return abs(math.log(math.prod(other) / count)), unlike

    return sorted(known, key=distance)[:2]


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
