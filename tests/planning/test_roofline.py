"""The arithmetic of times, utilization and cost."""

import pytest

from jaxformer.planning import topologies
from jaxformer.planning.chips import CHIPS
from jaxformer.planning.roofline import Roofline, cost, roofline
from jaxformer.planning.traffic import Collective


def test_each_part_takes_its_amount_at_its_speed():
    v5p, cube = CHIPS["v5p"], topologies.parse("2xv5p:4x4x4")
    row = cube.reach([(0, (0, 0, z)) for z in range(4)])
    slices = cube.reach([(0, (0, 0, 0)), (1, (0, 0, 0))])
    sent = [Collective("all-reduce", 4e9, 3.0, row), Collective("all-reduce", 2e9, 1.0, slices)]
    found = roofline(v5p, flops=459e12, memory=2765e9, collectives=sent)
    assert found.products == found.memory == 1.0
    assert found.fast == pytest.approx(3 * 2 * 4e9 * 3 / 4 / 200e9), (
        "a ring along one dimension has a third of the links"
    )
    assert found.slow == pytest.approx(2 * 2e9 / 2 / 6.25e9)
    assert found.shortest == 1.0 and found.bound == "products"
    assert found.longest == pytest.approx(2 + found.fast + found.slow)
    assert found.shortest < found.middle < found.longest


def test_the_bound_is_the_part_that_takes_longest():
    assert Roofline(1.0, 2.0, 3.0, 4.0).bound == "slow"
    assert Roofline(1.0, 2.0, 3.0, 0.0).shortest == 3.0


def test_a_run_costs_its_device_hours():
    found = cost(2.0, steps=43_200, devices=64, price=1.5)
    assert (found.days, found.device_hours, found.price) == (1.0, 24 * 64, 24 * 64 * 1.5)
    assert cost(2.0, 10, 1, None).price is None
