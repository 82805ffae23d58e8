"""How fast a program can be on a chip at its published speeds, if nothing else held it up."""

import dataclasses
from collections.abc import Iterable

from jaxformer.planning.chips import Chip
from jaxformer.planning.traffic import Collective
from jaxformer.training.utilization import PEAK_FLOPS

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The seconds of each part of a step, if it ran alone at the published speed.

    A real step is slower than `shortest`, where all parts overlap. How much they overlap is not known before a program
    runs, so `longest` is the sum of the parts. A step may take even longer, since no part reaches its published speed.
    """

    products: float
    """Matrix products, with those that rematerialisation computes again."""
    memory: float
    """Reading and writing the device's memory."""
    fast: float
    """The network inside a slice or node."""
    slow: float
    """The network between them."""

    @property
    def shortest(self) -> float:
        """Seconds of a step in which everything overlaps."""
        return max(self.products, self.memory, self.fast, self.slow)

    @property
    def longest(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return self.products + self.memory + self.fast + self.slow

    @property
    def middle(self) -> float:
        """Seconds between the two, by which plans are ranked."""
        return (self.shortest + self.longest) / 2

    @property
    def bound(self) -> str:
        """The field of the part that takes longest."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return max(parts, key=lambda name: parts[name])


def roofline(chip: Chip, flops: float, memory: float, collectives: Iterable[Collective]) -> Roofline:
    """The roofline of a program on one device.

    Args:
      chip: the device.
      flops: operations of its share of the matrix products.
      memory: bytes that it reads and writes.
      collectives: what it sends.
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
    """The time and the price of a whole run."""

    days: float
    device_hours: float
    price: float | None
    """In the currency of the price of a device hour; None without one."""


def cost(seconds: float, steps: int, devices: int, price: float | None) -> Cost:
    """The cost of a whole run.

    Args:
      seconds: of a step.
      steps: of the run.
      devices: that run it.
      price: of one device for an hour.
    """
    hours = seconds * steps * devices / 3600
    return Cost(seconds * steps / DAY, hours, None if price is None else price * hours)
