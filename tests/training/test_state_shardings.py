"""All functions that return arrays of the state or of parameters return them with the shardings of the rules.

Compiled for a CPU, they would mostly have them by default; for GPUs they would not. So these tests look at the
shardings that a program requests; `tests/parallel/test_compiled.py` looks at programs compiled for GPU and TPU.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from config_kinds import of_each_kind

import jaxformer as jf
from jaxformer import config
from jaxformer.config import Checkpoint
from jaxformer.decoding import steps
from jaxformer.layers.lora import Lora
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs.parameters import used_params
from jaxformer.training import loop, warm_start
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.state import abstract_batch, abstract_params, abstract_state, copied, init_state

CONFIGS = of_each_kind(sorted((tiny.ROOT / "configs").glob("*.py")), "model", "objective", "optimizer", "lora")
MESHES = [Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(1, 4, 2)]
VARIANTS = {
    "plain": {},
    "average": {"optimizer.ema": 0.9},
    "micro-batches": {"optimizer.accumulate": 2, "data.batch": 16},
    "frozen": {"optimizer.freeze": ("embeddings/",), "optimizer.ema": 0.9},
    "LoRA": {"lora": Lora(rank=2), "optimizer.ema": 0.9},
    "offload": {"optimizer.offload": True},
}
COMPILED = list(zip(MESHES, ["average", "LoRA", "micro-batches"], strict=True))
"""Each mesh with a variant whose step is compiled."""
LOWERED = [(MESHES[0], "micro-batches"), (MESHES[1], "average")]
LOWERED += [(MESHES[2], variant) for variant in VARIANTS if variant != "micro-batches"]
"""Others: each variant on the mesh that has all kinds of splits, and two on another mesh too."""


def assert_same_shardings(arrays, expected):
    assert jax.tree.structure(arrays) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(arrays), jax.tree.leaves(expected), strict=True)
    assert not [
        jax.tree_util.keystr(path)
        for (path, array), leaf in pairs
        if not array.sharding.is_equivalent_to(leaf.sharding, array.ndim)
    ]


def assert_keeps_the_state(lowered, state):
    """A lowered step returns the state with its shardings, in the memory of the donated one, and whole means."""
    after, means = lowered.out_info
    assert_same_shardings(after, state)
    assert not is_split(means)
    assert lowered.as_text().count("tf.aliasing_output") == len(jax.tree.leaves(state))


def is_split(tree):
    return any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))


def experiment_of(tiny_config, **overrides):
    return config.override(tiny.load(tiny_config, model__transformer__heads=4), overrides)


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_the_step_of_a_config_returns_the_state_as_it_takes_it(file):
    """At full width: nothing is computed."""
    experiment, mesh = jf.load(file), sharding.make_mesh(Mesh(1, 4, 2))
    experiment = dataclasses.replace(experiment, model=tiny.shallow(experiment.model, 2))
    lowered, state = loop.lower_step(experiment, mesh), abstract_state(experiment, mesh)
    assert is_split(state.params)
    assert_keeps_the_state(lowered, state)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "variant"), LOWERED, ids=str)
def test_the_step_returns_the_state_as_it_takes_it_on_every_mesh(shape, variant, tiny_config):
    experiment, mesh = experiment_of(tiny_config, **VARIANTS[variant]), sharding.make_mesh(shape)
    lowered, state = loop.lower_step(experiment, mesh), abstract_state(experiment, mesh)
    assert is_split(state) == (shape.data < 8)
    assert_keeps_the_state(lowered, state)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "variant"), COMPILED, ids=str)
def test_the_compiled_step_updates_the_state_in_place(shape, variant, tiny_config):
    experiment, mesh = experiment_of(tiny_config, **VARIANTS[variant]), sharding.make_mesh(shape)
    state, lowered = abstract_state(experiment, mesh), loop.lower_step(experiment, mesh)
    assert_keeps_the_state(lowered, state)
    compiled = lowered.compile()
    places, of_means = compiled.output_shardings
    kept = jax.tree.map(lambda place, leaf: place.is_equivalent_to(leaf.sharding, leaf.ndim), places, state)
    assert all(jax.tree.leaves(kept))
    assert all(place.is_fully_replicated for place in jax.tree.leaves(of_means))
    leaves = jax.tree.leaves(state)
    assert len(re.findall(r"(?:may|must)-alias", compiled.as_text().partition("\n")[0])) == len(leaves)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    assert compiled.memory_analysis().alias_size_in_bytes == held


def test_an_abstract_batch_is_one_as_the_loader_gives_it(tiny_config):
    experiment, mesh = experiment_of(tiny_config), sharding.make_mesh(Mesh(2, 2, 2))
    tokenizer = experiment.tokenizer.build(experiment.data.train.open, "/nowhere")
    rows = sharding.local_rows(8, mesh)
    with loop.loader.train_batches(experiment.data, tokenizer, 0, rows) as batches:
        batch = sharding.global_batch(next(batches)[0], rows, 8, mesh)
    abstract = abstract_batch(experiment, mesh)
    assert abstract.keys() == batch.keys()
    assert_same_shardings(batch, abstract)
    for name, array in batch.items():
        assert (array.shape, array.dtype) == (abstract[name].shape, abstract[name].dtype)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["frozen", "LoRA"])
def test_the_state_keeps_its_shardings_from_init_to_restore(variant, tiny_config, tmp_path):
    experiment, mesh = experiment_of(tiny_config, **VARIANTS[variant]), sharding.make_mesh(Mesh(1, 4, 2))
    abstract = abstract_state(experiment, mesh)
    state = init_state(experiment, abstract)
    assert_same_shardings(state, abstract)
    assert_same_shardings(used_params(experiment, state.best_params, mesh), abstract_params(experiment, mesh))
    with Checkpoints(tmp_path / "checkpoints", Checkpoint()) as checkpoints:
        lanes = loop.loader.initial_state(experiment.data)
        everywhere = jax.device_put(lanes, sharding.replicated(mesh))
        checkpoints.save(0, {**state.trees(), "lanes": {"lanes": everywhere}}, None)
        checkpoints.wait()
        restored, _, _ = loop.restore_or_init(checkpoints, experiment, mesh)
    assert_same_shardings(restored, abstract)


@pytest.mark.slow
def test_a_copy_has_the_sharding_of_the_array_in_memory_of_its_own(tiny_config):
    experiment, mesh = experiment_of(tiny_config), sharding.make_mesh(Mesh(1, 4, 2))
    params = init_state(experiment, abstract_state(experiment, mesh)).params
    copies = copied(params)
    assert_same_shardings(copies, params)
    jax.tree.map(lambda array: array.delete(), params)
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(copies))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Mesh(1, 4, 2), Mesh(8, 1, 1)], ids=str)
def test_parameters_that_come_from_elsewhere_lie_where_those_they_replace_do(shape, tiny_config):
    experiment, mesh = experiment_of(tiny_config), sharding.make_mesh(shape)
    abstract = abstract_state(experiment, mesh)
    params = init_state(experiment, abstract).params
    found = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float16), abstract.params)
    weights = (warm_start.Weights(experiment.model, tree) for tree in (found, params))
    start = warm_start.match("elsewhere", *weights)
    assert_same_shardings(start.params, abstract.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(start.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_decoding_splits_each_block_as_the_stack_is_split(tiny_config):
    del tiny_config
    experiment = jf.load(tiny.ROOT / "configs" / "gpt_quickstart.py", {"model.transformer.dtype": "bfloat16"})
    experiment = dataclasses.replace(experiment, model=tiny.shallow(experiment.model, 2))
    mesh = sharding.make_mesh(Mesh(1, 4, 2))
    params = init_state(experiment, abstract_state(experiment, mesh)).params
    with jax.set_mesh(mesh):
        ready = steps.ready(experiment.model, params)
    stacks, blocks = params["transformer"]["blocks"], ready["transformer"]["blocks"]
    assert len(blocks) == 2
    assert blocks[0]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    for block in blocks:
        for array, stack in zip(jax.tree.leaves(block), jax.tree.leaves(stacks), strict=True):
            assert array.addressable_shards[0].data.shape == stack.addressable_shards[0].data.shape[1:]
