"""The training step of every config, compiled for GPUs and TPUs that need not be here (`pip install '.[plan]'`).

Nothing runs. The tests look at the step as compilers have it: how its results are split, which memory it reuses
and what it gathers.
"""

import dataclasses
import functools
import math
import re

import jax
import pytest
import tiny

import jaxformer as jf
from jaxformer import config
from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.planning import compiling, topologies, traffic
from jaxformer.training import loop
from jaxformer.training.optimizers import AdamW, Muon
from jaxformer.training.state import abstract_state

CONFIGS = sorted((tiny.ROOT / "configs").glob("*.py"))
DEPTH = 3
"""Blocks, or periods of blocks, of each stack.

A model that needs only some positions of its last block runs the others in a loop: two."""
ROWS = 64
"""Rows of a batch, or of each micro-batch, at most: with a config's own a large model needs more devices than these."""
LEAST = 2**13
"""Entries per layer of a stack whose gathers count."""
SPLIT = 8
"""Devices that the rows of a batch are split over on either target."""
TARGETS = ("h100:8", "v5e:4x4")
"""The topologies to compile for."""
compiling.prepare()
pytestmark = pytest.mark.slow


@functools.cache
def mesh_of(target):
    shape = Mesh(2, 4, 2) if target == "v5e:4x4" else Mesh(1, 8, 1)
    return sharding.make_mesh(shape, compiling.devices(topologies.parse(target)))


@pytest.fixture(params=TARGETS)
def target(request):
    try:
        compiling.check_compiler(topologies.parse(request.param))
    except InputError as error:
        pytest.skip(str(error))
    return request.param


def products(lowered):
    """The type that each matrix product of a program multiplies. Leaves out those that ask for all of float32's digits,
    such as a router's."""
    lines = [line for line in lowered.as_text().splitlines() if "HIGHEST" not in line]
    return re.findall(r"dot_general .*: \(tensor<(?:\d+x)*(\w+)>, tensor<", "\n".join(lines))


def without_muon(experiment):
    """The experiment, with AdamW in place of Muon, whose update has products in float32."""
    given = experiment.optimizer
    optimizer = AdamW(given.schedule, accumulate=given.accumulate) if isinstance(given, Muon) else given
    return dataclasses.replace(experiment, optimizer=optimizer)


def gathered(text, in_update):
    """The shapes of the results of the gathers of a compiled step, with or without those of the optimizer's update."""
    gathers = re.findall(r"= (\S.*?) all-gather(?:-start)?\((.*)", text)
    results = [result for result, rest in gathers if in_update or "/cond/" not in rest]
    return [tuple(map(int, sizes.split(","))) for result in results for sizes in re.findall(r"\[(\d[\d,]*)\]", result)]


def whole_stacks(shapes, stacks):
    """Returns the shapes of several layers of a stack of matrices, as it is or with some of its axes made one.

    Biases are left out: small tables, such as the one of two token types, have shapes like theirs.
    """
    layers = {math.prod(stack.shape[1:]) for stack in stacks} - set(range(LEAST))
    most = max(stack.shape[0] for stack in stacks)
    return [shape for shape in shapes if shape[0] in range(2, most + 1) and math.prod(shape[1:]) in layers]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_the_step(target, file, record_property):
    experiment, mesh = jf.load(file), mesh_of(target)
    # With as many rows a device as layers of a stack, activations would be taken for stacks.
    rows = max(min(experiment.data.batch // experiment.optimizer.accumulate, ROWS), (DEPTH + 1) * SPLIT)
    batch = rows // SPLIT * SPLIT * experiment.optimizer.accumulate
    experiment = config.override(experiment, {"data.batch": batch})
    shallow, shallower = (
        dataclasses.replace(experiment, model=tiny.shallow(experiment.model, depth)) for depth in (DEPTH, DEPTH - 1)
    )
    lowered, state = loop.lower_step(shallow, mesh), abstract_state(shallow, mesh)
    types, fewer = (products(loop.lower_step(without_muon(one), mesh)) for one in (shallow, shallower))
    assert types.count("bf16") > len(types) / 2, "the compute type is the target's, not that of this process"
    assert len(types) == len(fewer), "blocks run in a loop, as on the target"

    compiled = lowered.compile(compiling.OPTIONS[topologies.parse(target).chip.platform])
    leaves, (places, _) = jax.tree.leaves_with_path(state), compiled.output_shardings
    changed = [
        jax.tree_util.keystr(path)
        for (path, leaf), place in zip(leaves, jax.tree.leaves(places), strict=True)
        if not place.is_equivalent_to(leaf.sharding, leaf.ndim)
    ]
    assert not changed
    text, memory = compiled.as_text(), compiled.memory_analysis()
    record_property("peak GiB a device", round(memory.peak_memory_in_bytes / 2**30, 2))
    assert len(re.findall(r"(?:may|must)-alias", text.partition("\n")[0])) == len(leaves), "donated arrays are reused"
    stacks = [leaf for path, leaf in leaves if "blocks" in jax.tree_util.keystr(path) and leaf.ndim > 2]
    split = [leaf for leaf in stacks if not leaf.sharding.is_fully_replicated]
    # Muon's update multiplies each matrix by itself, which takes all of it.
    assert split and not whole_stacks(gathered(text, in_update=not isinstance(experiment.optimizer, Muon)), split)


def test_parameters_are_gathered_and_gradients_scattered_once():
    """The TPU compiler uses all-reduces of whole arrays where fsdp has all of 64 devices, which the plan says."""
    try:
        compiling.check_compiler(topologies.parse("v5p:4x4x4"))
    except InputError as error:
        pytest.skip(str(error))
    sent = {}
    for data, fsdp in ((2, 32), (1, 64)):
        experiment = jf.load("llama_7b", {"mesh.data": data, "mesh.fsdp": fsdp, "data.batch": 256})
        plan = jf.plan(dataclasses.replace(experiment, model=tiny.shallow(experiment.model, DEPTH)), "v5p:4x4x4")
        by_kind = traffic.by_kind(plan.collectives, lambda one: one.fast)
        sent[fsdp] = sum(by_kind.values())
        if fsdp == 32:
            # The rest are gradients of the embeddings and of kernels whose last axis, of 4,096, is split.
            assert by_kind["all-gather"] + by_kind["reduce-scatter"] > 0.75 * sent[fsdp] and not plan.notes
        else:
            assert any("--mesh.data 2 --mesh.fsdp 32" in note for note in plan.notes)
    assert sent[32] < 0.6 * sent[64]


def compiled_gpt(target, shape, **fields):
    """A GPT-2 of four blocks, compiled for a mesh of a topology: its experiment, the compiled step, and its state."""
    mesh = sharding.make_mesh(shape, compiling.devices(topologies.parse(target)))
    experiment = config.load(tiny.ROOT / "configs" / "gpt2_small.py", {"data.batch": ROWS, "mesh": shape, **fields})
    experiment = dataclasses.replace(experiment, model=tiny.shallow(experiment.model, 4))
    lowered, state = loop.lower_step(experiment, mesh), abstract_state(experiment, mesh)
    if topologies.parse(target).chip.platform == "gpu":
        compiling.place_in_host_memory(lowered)
    return experiment, lowered.compile(compiling.OPTIONS[topologies.parse(target).chip.platform]), state


def test_a_pipeline(target):
    """Stages pass activations on. Parameters stay on their stage, where only single layers are gathered."""
    shape = Mesh(1, 4, 2, pipeline=2) if target == "v5e:4x4" else Mesh(1, 4, pipeline=2)
    _, compiled, state = compiled_gpt(target, shape)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(compiled.output_shardings[0]), strict=True):
        assert place.is_equivalent_to(leaf.sharding, leaf.ndim)
    text = compiled.as_text() or ""
    stacks = [leaf for leaf in jax.tree.leaves(state.params["transformer"]) if leaf.ndim > 2]
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in stacks} == {2}
    assert re.search(r" collective-permute(-start)?\(", text)
    assert not whole_stacks(gathered(text, in_update=True), stacks)


def test_inputs_of_blocks_are_stored_in_host_memory(target):
    devices = topologies.parse(target).size
    experiment, compiled, _ = compiled_gpt(target, Mesh(1, devices), **{"model.transformer.remat": "offload"})
    width, length = experiment.model.stacks()["transformer"].width, experiment.data.task.length
    inputs = rf"bf16\[4,{ROWS // devices},{length},{width}\]\{{[^}}]*S\(5\)"  # 5 is XLA's number of host memory.
    assert re.search(inputs, compiled.as_text() or "")


def test_moments_are_stored_in_host_memory(target):
    """The step takes them from host memory and returns them there, in the same place, and needs less device memory."""
    shape = Mesh(1, topologies.parse(target).size)
    _, compiled, state = compiled_gpt(target, shape, **{"optimizer.offload": True})
    _, plain, _ = compiled_gpt(target, shape)
    leaves, moments = jax.tree.leaves(state), [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    given = [leaf.sharding for leaf in leaves]
    if target != "h100:8":  # JAX's description of a GPU has no memories, so shardings do not either.
        for places in (compiled.input_shardings[0][0], compiled.output_shardings[0]):
            found = [place.memory_kind for place in jax.tree.leaves(places)]
            assert found == [place.memory_kind for place in given] and found.count("pinned_host") == len(moments)
    header = (compiled.as_text() or "").partition("\n")[0]
    assert header.count("S(5)") == 2 * len(moments), "5 is XLA's number of host memory"
    assert len(re.findall(r"(?:may|must)-alias", header)) == len(leaves), "donated arrays are reused"
    size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in moments)
    memory, before = compiled.memory_analysis(), plain.memory_analysis()
    assert memory.host_argument_size_in_bytes >= size > 0 == before.host_argument_size_in_bytes
    assert memory.argument_size_in_bytes <= before.argument_size_in_bytes - size
    assert compiling.device_peak(memory) < compiling.device_peak(before) - 0.9 * size
