"""Counts the bytes per step that a compiled program sends between devices, and the bytes that it reads from and writes
to device memory.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from jaxformer.planning import groups
from jaxformer.planning.hlo import Computation, Instruction, Program, array_bytes
from jaxformer.planning.topologies import DeviceLocation, Reach, Topology

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SCATTERED = "all-reduce-scatter"
"""Prefix of the names that the TPU compiler gives to fusions of an all-reduce and a slice, which together are a
reduce-scatter.
"""
BETWEEN_SLICES = re.compile(r'_xla_megascale_target="{([\d,]+)}x.*_xla_megascale_transfer_type="(\w+)"')
"""Attributes of the instructions with which the TPU compiler hands arrays over to the network between slices: the
numbers of the slices that take part, and the kind of the collective operation, such as ALL_REDUCE.
"""
UNMOVED = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional", "opt-barrier", "iota", "domain", "add-dependency"),
}
"""Names of HLO operations that are not counted as memory traffic, because they read or write no memory themselves."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program, such as an all-reduce."""

    kind: str
    size: float
    """Number of bytes of the operation's input on each device."""
    times: float
    """Number of times that the operation runs per step."""
    reach: Reach
    """How the devices that take part in the operation are connected. If it runs in several groups of devices, the
    slowest group.
    """

    @property
    def total(self) -> float:
        """Size in bytes of the whole array: for an all-gather, of the gathered array; otherwise, of the operation's
        input on each device.
        """
        return self.size * self.reach.size if self.kind == "all-gather" else self.size

    @property
    def fast(self) -> float:
        """Number of bytes per step that a device sends over the fast network (inside a TPU slice or GPU node), if the
        bandwidth-optimal (ring) algorithm is used.
        """
        share = self.reach.within
        return self.times * self._passes * self.total * (share - 1) / share

    @property
    def slow(self) -> float:
        """Number of bytes per step that a device sends over the slow network (between TPU slices or GPU nodes). The
        devices of a slice or node share its traffic equally.
        """
        units = self.reach.slices_or_nodes
        return self.times * self._passes * self.total * (units - 1) / units / self.reach.within

    @property
    def _passes(self) -> float:
        """Factor of the number of bytes sent: how often the whole array passes through each device. It is 1 for a
        reduce-scatter or an all-gather, and 2 for an all-reduce, which consists of both.
        """
        if self.kind == "collective-permute":  # Every device sends its whole array.
            return self.reach.size / (self.reach.size - 1) if self.reach.size > 1 else 0.0
        return 2.0 if self.kind == "all-reduce" else 1.0


def collectives(program: Program, topology: Topology, places: Sequence[DeviceLocation]) -> list[Collective]:
    """Returns the collective operations of a program, with their sizes, how often they run per step, and how their
    devices are connected.

    Args:
      program: compiled program.
      topology: topology for which the program was compiled.
      places: locations of the devices, in the order of the device assignment of the program.
    """
    reaches: dict[str, Reach] = {}

    def reach(instruction: Instruction) -> Reach:
        if between := BETWEEN_SLICES.search(instruction.attributes):  # Each device communicates with its counterparts.
            slices = len(between[1].split(","))
            return Reach(slices, slices, 1.0)
        key = instruction.attributes.partition("metadata=")[0]
        if key not in reaches:
            found = groups.of(instruction.attributes, len(places))
            several = [topology.reach(places[number] for number in group) for group in found]
            # The groups of a collective run at the same time, so the slowest group determines the time.
            reaches[key] = max(several, key=lambda one: (one.slices_or_nodes, -one.share))
        return reaches[key]

    found = []
    for computation, times in program.runs():
        # The TPU compiler splits a collective that overlaps with other work into several fusions on the same channel.
        seen: set[str] = set()
        for kind, instruction, inside in _collectives(program, computation):
            channel = instruction.attribute(r"channel_id=(\d+)")
            if channel in seen:
                continue
            seen |= {channel} if channel else set()
            size = sum(array_bytes(inside.instructions[name].type) for name in instruction.operands)
            where = reach(instruction)
            if where.size > 1:
                found.append(Collective(kind, size, times, where))
    return found


def _collectives(program: Program, computation: Computation) -> Iterator[tuple[str, Instruction, Computation]]:
    """Yields the collective operations of a computation, including those inside its fusions, as (kind, instruction,
    computation that contains the instruction).
    """
    for instruction in computation.instructions.values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            yield kind, instruction, computation
        elif kind == "send" and (between := BETWEEN_SLICES.search(instruction.attributes)):
            yield between[2].lower().replace("_", "-"), instruction, computation
        elif kind in ("fusion", "async", "custom-call"):
            for name in instruction.called:
                for inner, inside, where in _collectives(program, program.computations[name]):
                    scattered = instruction.name.startswith(SCATTERED) or name.startswith(SCATTERED)
                    yield "reduce-scatter" if scattered and inner == "all-reduce" else inner, inside, where


def memory_bytes(program: Program) -> float:
    """Returns the number of bytes per step that a device reads from and writes to its memory.

    Each instruction reads its operands and writes its result. Values inside a fusion stay on the chip. If an
    instruction reads or replaces only a slice of an array, only the slice is counted. For a conditional, the branch
    that moves the most bytes is counted.
    """

    def of_computation(name: str) -> float:
        computation = program.computations[name]
        return sum(of_instruction(computation, one) for one in computation.instructions.values())

    def of_instruction(computation: Computation, one: Instruction) -> float:
        if one.opcode == "while":
            return (program.trips(computation, one) or 1) * sum(map(of_computation, one.called))
        if one.opcode == "conditional":
            return max(map(of_computation, one.called), default=0.0)
        if one.opcode == "call":
            return sum(map(of_computation, one.called))
        if one.opcode in UNMOVED or one.opcode.endswith("-done"):
            return 0.0
        return _moved(program, computation, one)

    return of_computation(program.entry)


def _moved(program: Program, computation: Computation, one: Instruction) -> float:
    """Returns the number of bytes that an instruction (`one`) reads from and writes to device memory."""
    types = [computation.instructions[name].type for name in one.operands if name in computation.instructions]
    result = array_bytes(one.type, memory=True)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * array_bytes(types[-1 if one.opcode == "scatter" else 1], memory=True)
    if one.opcode == "copy-start":  # The result type contains both the source and the destination.
        return result
    if one.opcode == "fusion" and one.called:
        return _moved_by_fusion(program.computations[one.called[0]], types, result)
    return result + sum(array_bytes(kind, memory=True) for kind in types)


def _moved_by_fusion(inner: Computation, types: Sequence[str], result: float) -> float:
    """Returns the number of bytes that a fusion reads from and writes to device memory. If the fusion uses only a slice
    of an operand, only the slice counts.

    Args:
      inner: computation of the fusion.
      types: HLO types of the fusion's operands.
      result: number of bytes of the fusion's result.
    """
    users: dict[str, list[Instruction]] = {}
    for one in inner.instructions.values():
        for name in one.operands:
            users.setdefault(name, []).append(one)

    def final_users(name: str) -> Iterator[Instruction]:
        for user in users.get(name, []):
            if user.opcode == "bitcast" and user is not inner.root:
                yield from final_users(user.name)
            else:
                yield user

    read, replaced = 0.0, 0.0
    for number, kind in enumerate(types):
        name, size = inner.parameters.get(number), array_bytes(kind, memory=True)
        used = list(final_users(name)) if name else []
        if used and all(user is inner.root and user.opcode == "tuple" for user in used):
            replaced += size  # The fusion returns the operand unchanged.
            continue
        slices = [_slice(inner, user, name) for user in used] if name else []
        if size and slices and all(part is not None for part in slices):
            parts = sum(part for part in slices if part is not None)
            read += min(size, parts)
            if any(user.opcode == "dynamic-update-slice" for user in used):
                replaced += max(0.0, size - parts)
        else:
            read += size
    return read + max(0.0, result - replaced)


def _slice(inner: Computation, user: Instruction, name: str | None) -> float | None:
    """Returns the number of bytes of the slice of an array that an instruction reads or replaces. Returns None if the
    instruction uses the whole array.

    Args:
      inner: computation that contains the instruction.
      user: instruction that has the array as an operand.
      name: name of the array.
    """
    if user.opcode in ("dynamic-slice", "slice"):
        return array_bytes(user.type)
    if user.opcode == "gather" and user.operands[0] == name:
        return array_bytes(user.type)
    if user.opcode == "dynamic-update-slice" and inner.instructions[user.operands[0]].name != user.operands[1]:
        return array_bytes(inner.instructions[user.operands[1]].type)
    return None


def by_kind(found: Sequence[Collective], measure: Callable[[Collective], float]) -> dict[str, float]:
    """Sums a quantity over the collective operations of each kind. `measure` returns the quantity for one operation,
    such as its number of bytes. Returns a dict that maps each kind to its sum, largest sum first.
    """
    totals: dict[str, float] = {}
    for one in found:
        totals[one.kind] = totals.get(one.kind, 0.0) + measure(one)
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
