"""The training step of every config, compiled for GPUs and TPUs that need not be here (`pip install '.[plan]'`).

Nothing runs. The tests look at the step as compilers have it: how its results are split, which memory it reuses
and what it gathers.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from pathlib import Path

import jax
import pytest
import tiny
from jax.experimental import topologies

import jaxformer as jf
from jaxformer import config
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training import loop
from jaxformer.training.optimizers import Muon
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
TARGETS = {"8 H100": "jax_cuda12_plugin", "16 v5e": "libtpu"}
"""The platform to compile for, and the package that has its compiler."""
pytestmark = pytest.mark.slow


@functools.cache
def mesh_of(target):
    if target == "16 v5e":
        # Without these the library asks the network which TPU this is, and one process at a time may use it.
        os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
        return sharding.make_mesh(Mesh(2, 4, 2), described.devices)
    card = (Path(__file__).parent / "h100_target_config.textproto").read_text()
    options = {"topology_name": "h100", "topology": "1x1x8", "target_config": card}
    return sharding.make_mesh(Mesh(1, 8, 1), topologies.get_topology_desc(platform="cuda", **options).devices)


@pytest.fixture(params=TARGETS)
def target(request):
    package = TARGETS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: it compiles for {request.param} (pip install '.[plan]')")
    return request.param


def compiler_options(target):
    """Without a GPU nothing can be tuned, and Triton finds no tiles for some products."""
    return {"xla_gpu_enable_triton_gemm": False} if target == "8 H100" else None


def products(lowered):
    """The type that each matrix product of a program multiplies."""
    return re.findall(r"dot_general .*: \(tensor<(?:\d+x)*(\w+)>, tensor<", lowered.as_text())


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
    rows = min(experiment.data.batch // experiment.optimizer.accumulate, ROWS)
    batch = rows // SPLIT * SPLIT * experiment.optimizer.accumulate
    experiment = config.override(experiment, {"data.batch": batch})
    shallow, shallower = (
        dataclasses.replace(experiment, model=tiny.shallow(experiment.model, depth)) for depth in (DEPTH, DEPTH - 1)
    )
    lowered, state = loop.lower_step(shallow, mesh), abstract_state(shallow, mesh)
    types = products(lowered)
    assert types.count("bf16") > len(types) / 2, "the compute type is the target's, not that of this process"
    assert len(types) == len(products(loop.lower_step(shallower, mesh))), "blocks run in a loop, as on the target"

    compiled = lowered.compile(compiler_options(target))
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
