"""Parses the groups of devices that take part in a collective operation of a compiled program. Supports all notations
of groups in HLO text.
"""

import math
import re

import numpy as np

MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\)(?= \{))? ?\{([^}]*)\}")
IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
LISTED = re.compile(r"replica_groups=\{(\{[\d, ]+\}(?:, ?\{[\d, ]+\})*)?\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:, ?\{\d+,\d+\})*)\}")
AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
TILES = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")


def of(attributes: str, devices: int) -> np.ndarray:
    """Parses the groups of devices among which a collective operation runs, from the HLO text of its instruction.

    Args:
      attributes: part of the instruction's HLO text after its operands.
      devices: number of devices of the program.

    Returns:
      Integers [groups, devices per group]: positions of the devices in the device assignment of the program. For a
      permutation, each group is a pair (source, target).
    """
    if found := PAIRS.search(attributes):
        return _lists(found[1])
    if found := MESH.search(attributes):
        return _mesh(found[1], found[2], found[3])
    if found := IOTA.search(attributes):
        return _tiles(found[1], devices)
    found = LISTED.search(attributes)
    return _lists(found[1]) if found and found[1] else np.arange(devices).reshape(1, devices)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _lists(text: str) -> np.ndarray:
    groups = [_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", text)]
    return np.array([group for group in groups if len(group) == len(groups[0])])


def _tiles(text: str, devices: int) -> np.ndarray:
    """Parses groups in tile notation. In `[16,4]<=[4,16]T(1,0)`, the numbers 0 to 63 are reshaped to [4, 16],
    transposed, and reshaped to 16 groups of 4 devices.

    In the form `[4,16]T(1,0)`, the last reshape is omitted. Returns integers [groups, devices per group].
    """
    found = TILES.search(text)
    if found is None:
        return np.arange(devices).reshape(1, devices)
    shape, source, order = (_numbers(part) if part else None for part in found.groups())
    numbers = np.arange(devices).reshape(source or shape)
    if order:
        numbers = numbers.transpose(order)
    return numbers.reshape(shape) if source else numbers


def _mesh(axes: str, ids: str | None, used: str) -> np.ndarray:
    """Parses groups in mesh notation, such as `mesh['a'=2,'b'=4] {'a','b':(2)2}`: each group extends along some mesh
    axes, or along parts of axes. Returns integers [groups, devices per group].

    Args:
      axes: text of the mesh axes and their sizes, such as `'a'=2,'b'=4`.
      ids: text of the order of the devices. None if they are in ascending order.
      used: text of the axes along which the groups extend, such as `'a','b':(2)2`.
    """
    sizes = {name: int(size) for name, size, _, _ in AXIS.findall(axes)}
    devices = math.prod(sizes.values())
    numbers = np.arange(devices)
    if ids:
        numbers = (_tiles(ids, devices) if "[" in ids else np.array(_numbers(ids))).reshape(-1)
    # `'b':(p)s` is a part of an axis: the axis is split into p × s × rest, and s is the part that groups extend along.
    parts = {name: (int(before or 1), int(size or sizes[name])) for name, _, before, size in AXIS.findall(used)}
    shape, grouped = [], []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, size // (before * part)]
        if name in parts:
            grouped.append(len(shape) - 2)
    others = [axis for axis in range(len(shape)) if axis not in grouped]
    size = math.prod(shape[axis] for axis in grouped)
    return numbers.reshape(shape).transpose(others + grouped).reshape(-1, size)
