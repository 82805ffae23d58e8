"""The mesh changes where numbers lie and what they cost, never what they are."""

import functools
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, PartitionSpec

from jaxformer.data.pipeline import loader
from jaxformer.errors import InputError
from jaxformer.layers import kernels
from jaxformer.parallel import sharding
from jaxformer.parallel.parameter_shards import parameter_spec
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs import run
from jaxformer.training import loop
from jaxformer.training.state import abstract_state, init_state

MESHES = [Mesh(2, 2, 2), Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(1, 1, 8), Mesh(1, 4, 1), Mesh(2, 2, slices=2)]


@pytest.fixture(scope="module")
def train(tiny_config, tmp_path_factory):
    """Trains three steps on a mesh: the state after, the loss of each step, and the states given to the steps."""
    experiment = tiny.load(tiny_config, model__transformer__heads=8, optimizer__ema=0.9)
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    tokenizer = experiment.tokenizer.build(experiment.data.train.open, str(folder))

    @functools.cache
    def run(shape):
        mesh = sharding.make_mesh(shape)
        rows = sharding.local_rows(experiment.data.batch, mesh)
        state = init_state(experiment, abstract_state(experiment, mesh))
        step, losses, given = loop.compile_step(experiment, mesh), [], []
        with loader.train_batches(experiment.data, tokenizer, experiment.seed, rows) as batches:
            for _, (batch, _) in zip(range(3), batches, strict=False):
                given.append(state)
                state, means = step(state, sharding.global_batch(batch, rows, experiment.data.batch, mesh))
                losses.append(float(means["masked_lm_loss"].value + means["next_sentence_loss"].value))
        return state, losses, given

    return run


@pytest.fixture(scope="module")
def alone(train):
    return train(Mesh(1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_every_mesh_trains_to_the_same_losses_and_parameters(shape, train, alone):
    state, losses, _ = train(shape)
    np.testing.assert_allclose(losses, alone[1], rtol=2e-6)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5)


@pytest.mark.slow
def test_parameters_moments_and_average_are_split_as_the_rules_say(train):
    state, *_ = train(Mesh(2, 2, 2))
    parts = jax.tree.leaves(state.optimizer, is_leaf=lambda part: hasattr(part, "mu"))
    adam = next(part for part in parts if hasattr(part, "mu"))
    for tree in (state.params, state.average, adam.mu, adam.nu):
        blocks = tree["transformer"]["blocks"]
        expected = [
            (tree["embeddings"]["token"], ("tensor", "fsdp"), (64, 8)),
            (tree["embeddings"]["norm"]["scale"], ("fsdp",), (8,)),
            (tree["pooler"]["kernel"], ("fsdp", None), (8, 16)),
            (blocks["attention"]["query"]["kernel"], (None, "fsdp", "tensor", None), (2, 8, 4, 2)),
            (blocks["attention"]["output"]["kernel"], (None, "tensor", None, "fsdp"), (2, 4, 2, 8)),
            (blocks["mlp"]["up"]["kernel"], (None, "fsdp", "tensor"), (2, 8, 32)),
        ]
        for array, spec, shard in expected:
            assert (*array.sharding.spec, *[None] * array.ndim)[: array.ndim] == spec
            assert {part.data.shape for part in array.addressable_shards} == {shard}
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert held < 0.4 * whole, "most of the parameters are split four ways"


@pytest.mark.slow
def test_the_state_is_laid_out_before_it_is_made(tiny_config):
    mesh = sharding.make_mesh(Mesh(2, 2, 2))
    experiment = tiny.load(tiny_config)
    abstract = abstract_state(experiment, mesh)
    state = init_state(experiment, abstract)
    for leaf, plan in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (plan.shape, plan.dtype)
        assert leaf.sharding.is_equivalent_to(plan.sharding, leaf.ndim)


@pytest.mark.slow
def test_the_state_given_to_a_step_is_donated(train):
    for state in train(Mesh(2, 2, 2))[2]:
        leaves = jax.tree.leaves((state.params, state.optimizer, state.average))
        assert leaves and all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.parametrize("shape, shard", [(Mesh(2, 2, 2), 2), (Mesh(8), 1), (Mesh(1, 1, 8), 8), (Mesh(4, 1, 2), 2)])
def test_a_batch_is_split_over_data_and_fsdp_in_the_order_of_its_rows(shape, shard):
    mesh = sharding.make_mesh(shape)
    rows = sharding.local_rows(8, mesh)
    assert rows == list(range(8))
    array = sharding.global_batch({"x": np.arange(24).reshape(8, 3)}, rows, 8, mesh)["x"]
    np.testing.assert_array_equal(np.asarray(array), np.arange(24).reshape(8, 3))
    assert {part.data.shape for part in array.addressable_shards} == {(shard, 3)}


def test_a_spec_follows_the_rules_uses_each_mesh_axis_once_and_leaves_whole_what_does_not_divide():
    mesh = sharding.make_mesh(Mesh(2, 2, 2))

    def spec(letters, *shape):
        return sharding.partition_spec(letters, shape, mesh)

    assert spec("btd", 8, 32, 16) == PartitionSpec(("data", "fsdp"), None, None)
    assert spec("dhk", 16, 4, 8) == PartitionSpec("fsdp", "tensor", None)
    assert spec("vd", 101, 16) == PartitionSpec(None, "fsdp")
    assert spec("dd", 16, 16) == PartitionSpec("fsdp", None)
    assert spec("dd", 15, 16) == PartitionSpec(None, "fsdp")
    assert spec("b", 6) == PartitionSpec("data"), "the first mesh axes of the rule that divide it"
    assert spec("b", 5) == PartitionSpec(None)
    whole = sharding.make_mesh(Mesh(8, 1, 1))
    assert sharding.partition_spec("vd", (64, 16), whole) == PartitionSpec(None, None)


def test_fsdp_splits_a_dimension_of_a_parameter_whose_shards_fill_tiles():
    mesh = AbstractMesh((1, 64, 2), ("data", "fsdp", "tensor"))

    def spec(letters, *shape):
        return tuple(parameter_spec(letters, shape, mesh))

    assert spec("ldf", 32, 4096, 11_008) == (None, "fsdp", "tensor"), "64 rows of 4,096 fill tiles"
    assert spec("lfd", 32, 11_008, 4096) == (None, "tensor", "fsdp")
    assert spec("lfd", 12, 3072, 768) == (None, ("fsdp", "tensor"), None), "24 columns, where the width would leave 12"
    assert spec("ldf", 12, 768, 3072) == (None, None, ("fsdp", "tensor"))
    assert spec("vd", 30_528, 768) == ("tensor", "fsdp"), "no dimension does: 238.5 and 12"
    assert spec("ldhk", 12, 768, 12, 64) == (None, "fsdp", "tensor", None), "heads are too few, head_dim is never split"
    assert spec("d", 768) == ("fsdp",), "there is no other dimension"
    assert spec("edf", 8, 768, 3072) == (None, "fsdp", "tensor"), "experts are dispatched by the rules"
    assert spec("_d", 3072, 768) == (None, "fsdp"), "what is whole stays whole"


def test_a_spec_refuses_unknown_letters_and_a_wrong_number_of_them():
    mesh = sharding.make_mesh(Mesh())
    with pytest.raises(ValueError, match=r"unknown axis 'q'.*b, t, s"):
        sharding.partition_spec("bq", (8, 8), mesh)
    with pytest.raises(ValueError, match=r"'bt'.*\(8, 8, 8\)"):
        sharding.partition_spec("bt", (8, 8, 8), mesh)


def test_every_letter_has_a_rule_on_axes_that_the_mesh_has():
    assert set(sharding.AXES.values()) == set(sharding.RULES)
    assert {axis for axes in sharding.RULES.values() for axis in axes} <= set(sharding.AXIS_NAMES)


@given(st.text(sorted(sharding.AXES), min_size=1, max_size=4), st.data())
def test_any_spec_can_lay_its_array(letters, data):
    shape = data.draw(st.tuples(*[st.integers(1, 24)] * len(letters)))
    mesh = sharding.make_mesh(Mesh(2, 2, 2))
    spec = sharding.partition_spec(letters, shape, mesh)
    jax.sharding.NamedSharding(mesh, spec).shard_shape(shape)  # Raises where it does not divide.


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((3, 5))
    assert sharding.constrain(x, "bd") is x


def used(mesh):
    sizes = mesh.sizes(8)
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def test_a_mesh_takes_the_devices_that_are_left_and_refuses_what_does_not_fit():
    assert used(Mesh()) == (8, 1, 1)
    assert used(Mesh(2, -1, 2)) == (2, 2, 2)
    assert used(Mesh(1, 2, 2)) == (1, 2, 2), "fewer devices than there are"
    assert sharding.make_mesh(Mesh(1, 2, 2)).devices.size == 4
    for shape, message in [((16, 1, 1), "does not fit 8"), ((-1, 3, 1), "divide it"), ((3, 3, 1), "8 or fewer")]:
        with pytest.raises(InputError, match=message):
            Mesh(*shape).sizes(8)
    for sizes, message in [((0, 1, 1), "mesh.data=0"), ((1, -2, 1), "mesh.fsdp=-2"), ((-1, -1, 1), "only one of")]:
        with pytest.raises(InputError, match=re.escape(message)):
            Mesh(*sizes)


def start_two(arguments):
    """The same command in two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | tiny.flags(4) | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(tiny.ROOT / "train.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(number)}, **pipes) for number in range(2)]


@pytest.mark.slow
def test_two_processes_equal_one_and_each_resumes_from_the_others_checkpoint(tiny_config, tmp_path):
    flags = ["--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--optimizer.schedule.decay", "constant"]
    flags += ["--steps", 6, "--evaluation.every", 3, "--checkpoint.every", 3]
    one, two = tmp_path / "one", tmp_path / "two"
    loop.fit(tiny.load(tiny_config, **as_overrides(flags)), one)
    first, second = start_two([tiny_config, *flags, "--workdir", two])
    assert "2 × fsdp 2" in tiny.finish(first)
    assert "loss" not in tiny.finish(second), "only the first process speaks"
    tiny.assert_equal(tiny.saved(two), tiny.saved(one), atol=1e-5)
    # And on, each from where the other has been.
    loop.fit(tiny.load(tiny_config, **as_overrides([*flags, "--steps", 9])), two)
    for process in start_two([tiny_config, *flags, "--steps", 9, "--workdir", one]):
        tiny.finish(process)
    tiny.assert_equal(tiny.saved(two), tiny.saved(one), atol=1e-5)
    assert run.open_run(one).step == 9
    for split in ("train", "validation"):
        ours, theirs = ([values["loss"] for values in tiny.metrics(folder, split)] for folder in (one, two))
        assert ours == pytest.approx(theirs, abs=1e-5)


def as_overrides(flags):
    """A command line's flags as `tiny.load` takes them."""
    words = list(map(str, flags))
    return {name[2:].replace(".", "__"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_slices_split_the_batch_outermost():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, slices=2))
    assert mesh.axis_names[0] == "slices" and sharding.local_rows(8, mesh) == list(range(8))
    first = sharding.batch_sharding(mesh).devices_indices_map((8,))
    assert [first[device][0].start for device in mesh.devices.flatten()] == list(range(8))


def test_rules_of_an_experiment_override_the_defaults():
    config = Mesh(data=1, fsdp=2, tensor=2, rules=(("vocab", ("fsdp", "tensor")), ("embed", ())))
    mesh = sharding.make_mesh(config)
    assert sharding.partition_spec("vd", (8, 8), mesh) == PartitionSpec("tensor", "fsdp")
    with sharding.use(mesh, config):
        assert sharding.partition_spec("vd", (8, 8), mesh) == PartitionSpec(("fsdp", "tensor"), None)
    assert sharding.partition_spec("vd", (8, 8), mesh) == PartitionSpec("tensor", "fsdp")


def test_jitted_functions_follow_the_rules_in_use():
    plain, other = Mesh(data=1, tensor=2), Mesh(data=1, tensor=2, rules=(("mlp", ()),))
    mesh, x = sharding.make_mesh(plain), np.ones((4, 4), np.float32)
    constrained = jax.jit(lambda x: sharding.constrain(x, "bf"))
    specs = []
    for config in (plain, other):
        with sharding.use(mesh, config):
            specs.append(constrained(x).sharding.is_fully_replicated)
    assert specs == [False, True]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("vocabulary", ()),), "'vocabulary' is not an axis of an array"),
        ((("vocab", ("tensors",)),), "'tensors' is not a mesh axis"),
        ((("batch", ()),), "batch is always split over slices, data, fsdp"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(rules, message):
    with pytest.raises(InputError, match=message):
        Mesh(rules=rules)


def test_kernels_refuse_rows_that_are_split_over_the_mesh(monkeypatch):
    config = Mesh(data=1, tensor=4, rules=(("query_position", ("tensor",)), ("heads", ())))
    arrays = {length: jnp.ones((1, length, 2, 128), jnp.bfloat16) for length in (256, 512)}
    with sharding.use(sharding.make_mesh(config), config):
        found = {}
        for platform in ("tpu", "gpu", "cpu"):
            monkeypatch.setattr(sharding, "platform", lambda platform=platform: platform)
            for length, query in arrays.items():
                found[platform, length] = kernels.choose("auto", query, query.swapaxes(1, 2), None, False, False)
        monkeypatch.setattr(sharding, "platform", lambda: "gpu")
        with pytest.raises(InputError, match=r"attention\.kernel=cudnn: it needs whole rows"):
            kernels.choose("cudnn", arrays[256], arrays[256].swapaxes(1, 2), None, False, False)
    assert found.pop(("tpu", 512)) == "splash", "each device has a whole tile of queries"
    assert set(found.values()) == {"ring"}
