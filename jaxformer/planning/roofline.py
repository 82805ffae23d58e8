"""Estimates the step time of a program from the published speeds of a chip (roofline model), and the cost of a whole
run.
"""

import dataclasses
from collections.abc import Iterable

from jaxformer.planning.chips import Chip
from jaxformer.planning.traffic import Collective
from jaxformer.training.utilization import PEAK_FLOPS

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Time in seconds that each part of a step would take by itself at the published speed of the chip.

    `shortest` assumes that all parts overlap, and `longest` that none do. A real step may take even longer than
    `longest`, because no part reaches its published speed.
    """

    products: float
    """Time of the matrix products in seconds, including recomputation."""
    memory: float
    """Time in seconds for reading and writing device memory."""
    fast: float
    """Time in seconds for sending data over the fast network, inside a TPU slice or GPU node."""
    slow: float
    """Time in seconds for sending data over the slow network, between TPU slices or GPU nodes."""

    @property
    def shortest(self) -> float:
        """Time in seconds of a step in which all parts overlap: the maximum of their times."""
        return max(self.products, self.memory, self.fast, self.slow)

    @property
    def longest(self) -> float:
        """Time in seconds of a step in which no parts overlap: the sum of their times."""
        return self.products + self.memory + self.fast + self.slow

    @property
    def middle(self) -> float:
        """Mean of `shortest` and `longest`, in seconds. A planning search orders candidates by this time."""
        return (self.shortest + self.longest) / 2

    @property
    def bound(self) -> str:
        """Name of the field with the largest time, which is the bottleneck."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return max(parts, key=lambda name: parts[name])


def roofline(chip: Chip, flops: float, memory: float, collectives: Iterable[Collective]) -> Roofline:
    """Estimates the times of the parts of a step (matrix products, memory, networks) on one device.

    Args:
      chip: specification of the device.
      flops: FLOPs of the matrix products of a step, per device.
      memory: number of bytes that the device reads from and writes to its memory in a step.
      collectives: collective operations of the program.
    """
    collectives = list(collectives)
    return Roofline(
        products=flops / PEAK_FLOPS[chip.kind],
        memory=memory / chip.bandwidth,
        fast=sum(one.fast / (chip.links * one.reach.share) for one in collectives),
        slow=sum(one.slow / chip.network for one in collectives),
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Duration of a whole run in days and in device-hours, and its price."""

    days: float
    device_hours: float
    price: float | None
    """Price of all device-hours of the run. None if the price per device-hour is not given."""


def cost(seconds: float, steps: int, devices: int, price: float | None) -> Cost:
    """Returns the duration and the price of a whole run.

    Args:
      seconds: time of a step in seconds.
      steps: number of steps.
      devices: number of devices.
      price: price of one device per hour.
    """
    hours = seconds * steps * devices / 3600
    return Cost(seconds * steps / DAY, hours, None if price is None else price * hours)
