"""Communication and memory traffic of compiled programs, for this process's eight devices."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.parallel import sharding
from jaxformer.planning import topologies, traffic
from jaxformer.planning.hlo import Program
from jaxformer.planning.traffic import Collective

NODE, NODES = topologies.parse("h100:8"), topologies.parse("h100:16")
SIZE = 4 * 64 * 128
"""Bytes of the array that is sent."""


def places(topology):
    inside = list(itertools.product(*map(range, topology.shape)))
    return [(unit, place) for unit in range(topology.slices_or_nodes) for place in inside]


def compiled(function, *specs, shape=(64, 128), mesh=sharding.Mesh(1, 8)):
    """The program of a function of arrays that are split over eight devices, from and to these specs."""
    mesh = sharding.make_mesh(mesh)
    given, wanted = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs)
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=given)
    return Program.parse(jax.jit(function, out_shardings=wanted).lower(array).compile().as_text())


def found(program, topology=NODE):
    return traffic.collectives(program, topology, places(topology))


def test_a_gather_sends_what_the_others_lack():
    (one,) = found(compiled(lambda x: x, ("fsdp",), ()))
    assert (one.kind, one.times, one.reach.size) == ("all-gather", 1, 8)
    assert one.total == SIZE and one.fast == SIZE * 7 / 8 and one.slow == 0


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    def gathered(x):
        total, _ = jax.lax.scan(lambda total, row: (jnp.tanh(total @ row), None), jnp.ones((2, 64)), x)
        return total

    loop = found(compiled(gathered, (None, None, "fsdp"), (), shape=(6, 64, 64)))
    assert sorted((one.kind, one.times) for one in loop) == [("all-gather", 1), ("all-gather", 6)], "the result's, too"


def test_every_kind_costs_what_the_ring_algorithm_sends():
    reach = NODE.reach(places(NODE))
    sent = {kind: Collective(kind, 800.0, 2.0, reach).fast for kind in traffic.KINDS}
    assert sent["all-reduce"] == 2 * 2 * 800 * 7 / 8
    assert sent["all-gather"] == 2 * 800 * 7
    assert sent["reduce-scatter"] == sent["all-to-all"] == 2 * 800 * 7 / 8
    assert sent["collective-permute"] == 2 * 800
    assert Collective("collective-permute", 800.0, 1.0, NODE.reach(places(NODE)[:2])).fast == 800


def test_between_nodes_each_device_sends_its_share():
    whole = Collective("reduce-scatter", 800.0, 1.0, NODES.reach(places(NODES)))
    assert whole.fast == 800 * 7 / 8, "as in one node"
    assert whole.slow == 800 / 2 / 8, "half of it leaves the node, by eight network cards"
    across = Collective("all-reduce", 800.0, 1.0, NODES.reach([(0, (0,)), (1, (0,))]))
    assert (across.fast, across.slow) == (0, 800)
    pair = Collective("collective-permute", 800.0, 1.0, NODES.reach([(0, (0,)), (1, (0,))]))
    assert (pair.fast, pair.slow) == (0, 800)


@pytest.mark.parametrize("shape", [(2, 4, 1), (4, 1, 2)])
def test_which_network_is_crossed_follows_from_the_mesh(shape):
    """Two nodes of four: the axis `data` of two crosses them, and what is outside of it does not."""
    program = compiled(lambda x: x, ("data",), (), mesh=sharding.Mesh(*shape))
    nodes = topologies.Topology("two", NODE.chip, (4,), 2)
    (one,) = found(program, nodes)
    assert one.reach.slices_or_nodes == 2 and one.reach.size == shape[0]
    inside = compiled(lambda x: x, ("fsdp",), (), mesh=sharding.Mesh(2, 4, 1))
    (one,) = found(inside, nodes)
    assert one.reach.slices_or_nodes == 1 and one.slow == 0


TPU = """HloModule jit_step

%start (p0: f32[16]) -> f32[64] {
  %p0 = f32[16]{0} parameter(0)
  ROOT %all-gather.1 = f32[64]{0} all-gather(%p0), channel_id=6, replica_groups={{0,1,2,3}}, dimensions={0}
}

%async_collective_fusion.2 (p1: f32[16], p2: f32[64]) -> (f32[64], f32[64]) {
  %p1 = f32[16]{0} parameter(0)
  %p2 = f32[64]{0} parameter(1)
  %all-gather.2 = f32[64]{0} all-gather(%p1), channel_id=6, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %both = (f32[64]{0}, f32[64]{0}) tuple(%all-gather.2, %p2)
}

%all-reduce-scatter.7 (p3: f32[64]) -> f32[16] {
  %p3 = f32[64]{0} parameter(0)
  %all-reduce.1 = f32[64]{0} all-reduce(%p3), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[16]{0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={16}
}

ENTRY %main (x: f32[16], y: f32[64]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %f1 = f32[64]{0:S(1)} fusion(%x), kind=kCustom, calls=%start
  %f2 = (f32[64]{0}, f32[64]{0}) fusion(%x, %y), kind=kCustom, calls=%async_collective_fusion.2
  %g = f32[64]{0} get-tuple-element(%f2), index=0
  %single = f32[64]{0} all-reduce(%g), channel_id=10, replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %f3 = f32[16]{0} fusion(%single), kind=kCustom, calls=%all-reduce-scatter.7
}
"""


def test_fusions_of_tpus_are_read():
    four = topologies.parse("h100:4")
    gather, scatter = found(Program.parse(TPU), four)
    assert (gather.kind, gather.fast) == ("all-gather", 64 * 3), "the parts of an overlapped gather are one"
    assert (scatter.kind, scatter.fast) == ("reduce-scatter", 256 * 3 / 4), "an all-reduce of which a slice is kept"


SLICES = """HloModule jit_step

ENTRY %main (x: bf16[16]) -> token[] {
  %x = bf16[16]{0} parameter(0)
  %after-all.1 = token[] after-all()
  %send.1 = (bf16[16]{0}, u32[], token[]) send(%x, %after-all.1), channel_id=4, frontend_attributes={BETWEEN}
  ROOT %send-done.1 = token[] send-done(%send.1), channel_id=4
}
""".replace("BETWEEN", '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"')


def test_what_tpus_send_to_other_slices_is_counted():
    """Through their hosts, which the program hands arrays over to."""
    (one,) = found(Program.parse(SLICES), topologies.parse("2xv5e:2x2"))
    assert (one.kind, one.reach.slices_or_nodes, one.size) == ("all-reduce", 2, 32)
    assert (one.fast, one.slow) == (0, 2 * 32 / 2)


def test_memory_traffic_is_what_instructions_read_and_write():
    program = Program.parse(jax.jit(lambda x: (x * 2 + 1) @ x).lower(jnp.ones((256, 256))).compile().as_text())
    size = 4 * 256 * 256
    moved = traffic.memory_bytes(program)
    assert 3 * size <= moved <= 6 * size


def test_of_a_stack_that_a_loop_slices_each_part_is_read_once():
    def function(stack, x):
        return jax.lax.scan(lambda x, row: (jnp.tanh(x @ row), None), x, stack)[0]

    depth, width = 16, 128
    stack, x = jnp.ones((depth, width, width)), jnp.ones((width, width))
    program = Program.parse(jax.jit(function).lower(stack, x).compile().as_text())
    layer = 4 * width * width
    assert depth * 3 * layer <= traffic.memory_bytes(program) <= depth * 10 * layer
    assert math.isclose(traffic.memory_bytes(Program.parse(TPU)), (64 + 64 + 256) + (256 + 256) + (256 + 64))
