"""Topologies by name, and how groups of their devices lie."""

import itertools

import pytest

from jaxformer.errors import InputError
from jaxformer.planning import topologies
from jaxformer.planning.chips import CHIPS
from jaxformer.planning.targets import CARDS, target_config
from jaxformer.planning.topologies import Reach, parse
from jaxformer.training.utilization import PEAK_FLOPS


def places(topology):
    inside = list(itertools.product(*map(range, topology.shape)))
    return [(unit, place) for unit in range(topology.slices_or_nodes) for place in inside]


@pytest.mark.parametrize(
    ("name", "shape", "slices_or_nodes", "size"),
    [
        ("v5e:1x1", (1, 1), 1, 1),
        ("v5e:16x16", (16, 16), 1, 256),
        ("v5e:8x4", (4, 8), 1, 32),
        ("V5P:4x4x8", (4, 4, 8), 1, 128),
        ("2xv5e:16x16", (16, 16), 2, 512),
        ("v5p:16x16x24", (16, 16, 24), 1, 6144),
        ("tpu7x:2x2x1", (2, 2, 1), 1, 8),
        ("h100:4", (4,), 1, 4),
        ("h200:8", (8,), 1, 8),
        ("b200:64", (8,), 8, 64),
    ],
)
def test_a_name_says_what_there_is(name, shape, slices_or_nodes, size):
    topology = parse(name)
    assert (topology.shape, topology.slices_or_nodes, topology.size) == (shape, slices_or_nodes, size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p:4x4x5", "--topology v5p:4x4x5: Google offers no such slice; nearest v5p:4x4x4 and v5p:4x4x8"),
        ("2xv6e:4x5", "--topology 2xv6e:4x5: Google offers no such slice; nearest 2xv6e:4x4 and 2xv6e:4x8"),
        ("v5e:4x4x4", "nearest v5e:8x8"),
        ("v5p:8x4x4", "nearest v5p:4x4x8"),
        ("v5q:4x4", "no figures of 'v5q'; perhaps v5p; expected one of v4, v5e,"),
        ("a100:8", "no figures of 'a100'"),
        ("h100:12", "a node has 8 GPUs; expected 1, 2, 4 or whole nodes: nearest h100:8 and h100:16"),
        ("h100:6", "nearest h100:4 and h100:8"),
        ("h100:0", "expected the number of GPUs, such as h100:8"),
        ("h100:2x4", "expected the number of GPUs, such as h100:8"),
        ("0xv5e:4x4", "expected at least one slice"),
        ("h100", "expected CHIP:SHAPE such as v5p:4x4x4"),
        ("", "expected CHIP:SHAPE"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_the_nearest(name, message):
    with pytest.raises(InputError) as error:
        parse(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_published_shapes_are_known():
    for name, shapes in {
        "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
        "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
        "tpu7x": ("2x2x1", "2x2x2", "4x4x4", "8x16x16", "16x16x16"),
    }.items():
        assert {tuple(map(int, shape.split("x"))) for shape in shapes} <= topologies.shapes(CHIPS[name])
    assert (16, 16, 28) not in topologies.shapes(CHIPS["v5p"])


def test_every_chip_has_a_peak_and_every_gpu_a_description():
    for chip in CHIPS.values():
        assert chip.kind in PEAK_FLOPS
        assert (chip.name in CARDS) == (chip.platform == "gpu")
    assert "major: 10" in target_config("b200") and "device_memory_size: 151397597184" in target_config("h200")


def test_a_group_uses_the_links_of_the_dimensions_that_it_extends_in():
    cube, line, flat = parse("v5p:4x4x4"), parse("v5p:2x2x4"), parse("v5e:4x4")
    row = [(0, (0, 0, z)) for z in range(4)]
    assert cube.reach(places(cube)) == Reach(64, 1, 1.0)
    assert cube.reach(row) == Reach(4, 1, 1 / 3), "a ring: both links of one dimension of three"
    assert cube.reach(row[:2]) == Reach(2, 1, 1 / 6), "half of a dimension is a line"
    assert line.reach(row) == Reach(4, 1, 1 / 6), "smaller than a cube: its ends are not joined"
    assert flat.reach(places(flat)) == Reach(16, 1, 1 / 2)
    assert parse("v5e:16x16").reach(places(parse("v5e:16x16"))).share == 1.0


def test_a_group_may_span_slices_or_nodes():
    slices, nodes = parse("2xv5e:4x4"), parse("h100:16")
    assert slices.reach([(0, (0, 0)), (1, (0, 0))]).slices_or_nodes == 2
    assert nodes.reach(places(nodes)) == Reach(16, 2, 1.0) and nodes.reach(places(nodes)).within == 8
    assert nodes.reach(places(nodes)[:8]).slices_or_nodes == 1


def test_both_devices_of_a_chip_reach_each_other_without_a_link():
    assert parse("tpu7x:2x2x1").reach([(0, (0, 0, 0)), (0, (0, 0, 0))]) == Reach(2, 1, 1.0)
