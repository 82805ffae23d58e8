"""Topologies by name, such as `v5p:4x4x4`, `2xv5e:16x16` and `h100:64`, and how their devices reach each other."""

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
"""The slices that Google offers of chips on a torus of two dimensions."""
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Slices smaller than a cube of 4x4x4, of chips on a torus of three dimensions; larger ones consist of such cubes."""
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""The most chips that one slice of them has."""
RING = 16
"""The length of a dimension at which the ends of a two-dimensional torus are joined."""
CUBE = 4
NODES = 1024
"""The most nodes of GPUs that are planned for."""

Place = tuple[int, tuple[int, ...]]
"""A device's slice or node, and its coordinates there."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """The position of a group of devices that communicate."""

    size: int
    """Devices of the group."""
    islands: int
    """Slices or nodes that it spans."""
    share: float
    """The share of a device's fast links that a collective of the group uses: all of them, or on a torus the two links
    along each dimension in which the group extends, one link where the dimension is a line and not a ring."""

    @property
    def within(self) -> float:
        """Devices of the group in one slice or node."""
        return self.size / self.islands


@dataclasses.dataclass(frozen=True)
class Topology:
    """Hardware to plan for."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    """Chips along each dimension of a slice; of GPUs (GPUs of a node,)."""
    islands: int = 1
    """Slices or nodes, connected by the slow network."""

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.islands * math.prod(self.shape) * self.chip.devices

    def is_ring(self, dimension: int) -> bool:
        """Whether the ends of that dimension of a slice are joined."""
        if self.chip.dimensions == 2:
            return self.shape[dimension] >= RING
        return all(size % CUBE == 0 for size in self.shape)

    def reach(self, places: Iterable[Place]) -> Reach:
        """The position of a group of devices, from their places."""
        places = list(places)
        islands = {island for island, _ in places}
        if self.chip.dimensions == 1:
            return Reach(len(places), len(islands), 1.0)
        first = [place for island, place in places if island == places[0][0]]
        used = 0
        for dimension, size in enumerate(self.shape):
            extent = len({place[dimension] for place in first})
            used += 0 if extent == 1 else 2 if extent == size and self.is_ring(dimension) else 1
        # Two devices of one chip share it without a link.
        return Reach(len(places), len(islands), used / (2 * self.chip.dimensions) or 1.0)


def parse(name: str) -> Topology:
    """The topology of that name: `CHIP:SHAPE` for a TPU slice, `NxCHIP:SHAPE` for several, `CHIP:COUNT` for GPUs.

    Raises:
      InputError: there is none; the message names the nearest.
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
    nodes = -(-count // chip.island)
    if len(shape) > 1 or several > 1 or not 1 <= count <= chip.island * NODES:
        raise InputError(f"--topology {name}: expected the number of GPUs, such as {chip.name}:{chip.island}")
    if nodes == 1 and chip.island % count == 0:
        return Topology(name, chip, (count,))
    if count % chip.island:
        low, high = chip.island * (nodes - 1), chip.island * nodes
        near = [max(size for size in (1, 2, 4, 8) if size < count), chip.island] if nodes == 1 else [low, high]
        raise InputError(
            f"--topology {name}: a node has {chip.island} GPUs; expected 1, 2, 4 or whole nodes: nearest "
            + " and ".join(f"{chip.name}:{size}" for size in near)
        )
    return Topology(name, chip, (chip.island,), nodes)


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
    """The shapes of the slices that there are of a TPU."""
    if chip.dimensions == 2:
        return frozenset(tuple(map(int, shape.split("x"))) for shape in FLAT)
    small = {tuple(map(int, shape.split("x"))) for shape in SMALL}
    sizes = range(CUBE, LARGEST[chip.name] // CUBE**2 + 1, CUBE)
    cubes = itertools.combinations_with_replacement([size for size in sizes if size <= 28], 3)
    return frozenset(small | {cube for cube in cubes if math.prod(cube) <= LARGEST[chip.name]})


def _nearest(shape: Sequence[int], known: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The two shapes of nearly as many chips, the most alike first."""
    wanted, count = sorted(shape), max(1, math.prod(shape))

    def distance(other: tuple[int, ...]) -> tuple[float, float]:
        unlike = sum(abs(a - b) for a, b in itertools.zip_longest(wanted, sorted(other), fillvalue=1))
        return abs(math.log(math.prod(other) / count)), unlike

    return sorted(known, key=distance)[:2]


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
