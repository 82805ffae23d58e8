"""Formats a plan (the result of `jaxformer plan`) as text or JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxformer.parallel import sharding
from jaxformer.planning import traffic
from jaxformer.planning.plans import PREALLOCATED, Plan
from jaxformer.planning.roofline import Roofline, cost
from jaxformer.planning.topologies import Topology

GIB, GB = 2**30, 1e9
OPERATIONS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
CAVEAT = (
    "The memory is the compiler's own count. Times are from published speeds, which no program reaches; none has been "
    "compared with a chip yet."
)


def print_plan(plan: Plan, console: Console) -> None:
    """Prints a plan to a console: its memory use, communication, times and cost."""
    name, amount = plan.units
    topology, batch = plan.topology, plan.experiment.data.batch
    parts = plan.experiment.optimizer.accumulate
    micro = f" in {parts} micro-batches" if parts > 1 else ""
    console.print(
        f"{topology.name}: {topology.size:,} devices · mesh {sharding.mesh_text(plan.mesh)} · batch {batch:,} rows"
        f"{micro}, {amount:,} {name} · remat {plan.remat}"
    )
    console.print(verdict(plan))
    memory = plan.memory
    shares = {"parameters": memory.params, "optimizer": memory.optimizer, "batch": memory.batch}
    if memory.peak > memory.params and not memory.refused:
        shares["activations and temporaries"] = memory.rest
    console.print("  " + " · ".join(f"{label} {bytes_text(size)}" for label, size in shares.items()))
    if memory.host:
        console.print(f"  in host memory, for each device: optimizer {bytes_text(memory.host)}")
    again = plan.flops / plan.model_flops - 1
    more = f"; {again:.0%} more in the program, much of it computed again" if again > 0.005 else ""
    console.print(f"operations: {operations_text(plan.model_flops)} a step{more}")
    if plan.roofline is None:
        return
    if plan.collectives:
        console.print(_collectives_table(plan))
    else:
        console.print("nothing is sent between devices")
    for line in _times(plan, plan.roofline):
        console.print(line)
    for note in plan.notes:
        console.print(f"note: {note}")
    console.print(CAVEAT, style="dim")


def verdict(plan: Plan) -> str:
    """Describes on one line whether the training step fits in device memory."""
    memory = plan.memory
    if memory.refused:
        needed = f"needs at least {gib(memory.peak)} of" if memory.peak else "needs more than"
        return f"does not fit: the compiler {needed} {gib(memory.usable)} GiB a device"
    of = f"{gib(memory.peak)} of {gib(memory.capacity)} GiB a device ({memory.peak / memory.capacity:.0%})"
    if not memory.fits:
        return f"does not fit: {of}, and {gib(memory.usable)} GiB can be used"
    if plan.topology.chip.platform == "gpu" and memory.peak > PREALLOCATED * memory.capacity:
        return f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92: {of}"
    return f"fits: {of}"


def gib(size: float) -> str:
    """Formats a number of bytes in GiB, without the unit."""
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def bytes_text(size: float) -> str:
    """Formats a number of bytes in the unit KiB, MiB or GiB, such as `1.50 GiB`."""
    for scale, unit in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= scale:
            return f"{size / scale:.2f} {unit}" if size < 10 * scale else f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def duration_text(low: float, high: float) -> str:
    """Formats a range of durations, given in days, in days, hours, minutes or seconds, such as `2.1–3.4 hours`."""
    for scale, unit in ((1.0, "days"), (24.0, "hours")):
        if high * scale >= 1:
            return f"{span(low * scale, high * scale, ',.1f' if high * scale < 100 else ',.0f')} {unit}"
    if high * 1440 >= 1:
        return f"{span(low * 1440, high * 1440, ',.1f')} minutes"
    return f"{span(low * 86_400, high * 86_400, ',.1f')} seconds"


def operations_text(flops: float) -> str:
    """Formats a number of floating-point operations with a unit, such as `1.5 TFLOP`."""
    for scale, unit in OPERATIONS:
        if flops >= scale:
            return f"{flops / scale:,.1f} {unit}"
    return f"{flops / 1e6:,.1f} MFLOP"


def seconds_text(seconds: float) -> str:
    """Formats a number of seconds, such as `1.25 s`, or in milliseconds if it is below 1."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.3g} ms"


def span(low: float, high: float, form: str = ",.0f") -> str:
    """Formats a range of numbers as `LOW–HIGH`, or as one number if both have the same text. `form` is the format of
    each number.
    """
    first, last = f"{low:{form}}", f"{high:{form}}"
    return first if first == last else f"{first}–{last}"


def _collectives_table(plan: Plan) -> Table:
    fast, slow = plan.topology.chip.networks
    table = Table(box=None, pad_edge=False, title="sent by a device in a step, GB", title_justify="left")
    table.add_column("collective")
    for name in ("times", fast, slow):
        table.add_column(name, justify="right")
    by_fast = traffic.by_kind(plan.collectives, lambda one: one.fast)
    by_slow = traffic.by_kind(plan.collectives, lambda one: one.slow)
    times = traffic.by_kind(plan.collectives, lambda one: one.times)
    for kind in by_fast:
        table.add_row(kind, f"{times[kind]:,.0f}", f"{by_fast[kind] / GB:,.3f}", f"{by_slow[kind] / GB:,.3f}")
    return table


def _times(plan: Plan, found: Roofline) -> list[str]:
    fast, slow = plan.topology.chip.networks
    parts = {"matrix products": found.products, "device memory": found.memory, fast: found.fast, slow: found.slow}
    alone = " · ".join(f"{name} {seconds_text(seconds)}" for name, seconds in parts.items() if seconds)
    low, high = found.shortest, found.longest
    unit, amount = plan.units
    steps = plan.experiment.steps
    shortest, longest = (cost(seconds, steps, plan.topology.size, plan.price) for seconds in (low, high))
    price = ""
    if shortest.price is not None and longest.price is not None:
        price = f", at {plan.price:,.2f} an hour {span(shortest.price, longest.price)}"
    took = duration_text(shortest.days, longest.days)
    return [
        f"a step: {alone}",
        f"  {seconds_text(low)} if all of it overlaps, {seconds_text(high)} if nothing does: "
        f"{span(amount / high, amount / low)} {unit}/s, "
        f"MFU {span(100 * plan.utilization(high), 100 * plan.utilization(low))}%",
        f"{steps:,} steps: {took}, {span(shortest.device_hours, longest.device_hours)} device-hours{price}",
    ]


def plan_json(plan: Plan) -> dict[str, Any]:
    """Converts a plan to a dict that can be written as JSON. Sizes are in bytes, operations in FLOPs, and times in
    seconds, days or device-hours.
    """
    memory, found = plan.memory, plan.roofline
    result: dict[str, Any] = {
        "topology": topology_json(plan.topology),
        "mesh": dict(plan.mesh),
        "batch": plan.experiment.data.batch,
        "micro_batches": plan.experiment.optimizer.accumulate,
        "remat": plan.remat,
        "fits": memory.fits,
        "bytes_a_device": {
            "capacity": memory.capacity,
            "usable": memory.usable,
            "peak": memory.peak,
            "parameters": memory.params,
            "optimizer": memory.optimizer,
            "batch": memory.batch,
            "in_host_memory": memory.host,
            "activations_and_temporaries": None if memory.refused else memory.rest,
        },
        "operations_a_step": {"model": plan.model_flops, "program": plan.flops},
        "notes": list(plan.notes),
    }
    if found is None:
        return result
    unit, amount = plan.units
    ends = {"shortest": found.shortest, "longest": found.longest}
    costs = {
        name: cost(seconds, plan.experiment.steps, plan.topology.size, plan.price) for name, seconds in ends.items()
    }
    return result | {
        "collectives": collectives_json(plan.collectives),
        "bytes_moved_in_memory": plan.memory_bytes,
        "seconds_a_step": {
            "products": found.products,
            "memory": found.memory,
            "fast_network": found.fast,
            "slow_network": found.slow,
            **ends,
        },
        f"{unit}_a_second": {name: amount / seconds for name, seconds in ends.items()},
        "mfu": {name: plan.utilization(seconds) for name, seconds in ends.items()},
        "days": {name: one.days for name, one in costs.items()},
        "device_hours": {name: one.device_hours for name, one in costs.items()},
        "price": {name: one.price for name, one in costs.items()},
    }


def topology_json(topology: Topology) -> dict[str, Any]:
    """Converts a topology to a dict that can be written as JSON: its name, chip, number of devices and networks."""
    networks = dict(zip(("fast_network", "slow_network"), topology.chip.networks, strict=True))
    return {"name": topology.name, "chip": topology.chip.name, "devices": topology.size, **networks}


def collectives_json(found: Sequence[traffic.Collective]) -> dict[str, dict[str, float]]:
    """Sums the collective operations of each kind. Returns a dict that maps each kind to a dict with the number of
    times that it runs per step (`times`), and the bytes that a device sends over the fast and the slow network.
    """
    kinds = traffic.by_kind(found, lambda one: one.fast + one.slow)
    return {
        kind: {
            "times": sum(one.times for one in found if one.kind == kind),
            "fast_network": sum(one.fast for one in found if one.kind == kind),
            "slow_network": sum(one.slow for one in found if one.kind == kind),
        }
        for kind in kinds
    }
