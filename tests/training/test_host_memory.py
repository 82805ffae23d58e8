"""The optimizer state in host memory (`optimizer.offload`): where its arrays are, and that training stays the same."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from jaxformer import config
from jaxformer.errors import InputError
from jaxformer.parallel import host_memory, sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.training import loop
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.first_state import restore_or_init
from jaxformer.training.state import abstract_batch, abstract_state, init_state

SHAPE = Mesh(1, 4, 2)


def offloaded(tiny_config, mesh=SHAPE, **fields):
    return tiny.load(tiny_config, optimizer__offload=True, model__transformer__heads=4, mesh=mesh, **fields)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


def test_only_the_optimizer_state_is_in_host_memory(tiny_config):
    experiment, mesh = offloaded(tiny_config, optimizer__ema=0.9), sharding.make_mesh(SHAPE)
    state = abstract_state(experiment, mesh)
    assert kinds(state.optimizer) == {host_memory.HOST}
    assert host_memory.HOST not in kinds((state.params, state.average))
    scalars = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state) if not leaf.ndim}
    assert host_memory.HOST not in scalars
    on_device = abstract_state(config.override(experiment, {"optimizer.offload": False}), mesh)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(on_device), strict=True):
        assert one.sharding.spec == other.sharding.spec and one.sharding.mesh == other.sharding.mesh


@pytest.mark.slow
def test_the_step_equals_one_on_the_device_and_returns_the_state_where_it_was(tiny_config):
    shape = Mesh(1, 2)
    experiment, mesh = offloaded(tiny_config, shape), sharding.make_mesh(shape)
    abstract = abstract_state(experiment, mesh)
    before = init_state(experiment, abstract)
    on_device = config.override(experiment, {"optimizer.offload": False})
    batch = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_batch(experiment, mesh))
    expected = jax.device_get(loop.compile_step(on_device, mesh)(copied_to_device(before), batch))
    assert kinds(before.optimizer) == {host_memory.HOST}
    after, means = loop.compile_step(experiment, mesh)(before, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "donated"
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(abstract), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    assert kinds(after.optimizer) == {host_memory.HOST} and kinds(after.params) != {host_memory.HOST}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((after, means)), expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0].optimizer) if leaf.ndim) > 0, "updated"


def copied_to_device(state):
    """Returns a copy of a state with all arrays in device memory."""
    kind = jax.devices()[0].default_memory().kind
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), leaf.sharding.with_memory_kind(kind)), state)


@pytest.mark.slow
def test_a_run_resumes_with_its_moments_in_another_memory(tiny_config, tmp_path):
    fields = {"data__validation": None, "mesh": Mesh(1, 2), "steps": 1}
    plain, offload = (tiny.load(tiny_config, **fields, optimizer__offload=value) for value in (False, True))
    loop.fit(plain, tmp_path / "run", quiet=True)
    mesh = sharding.make_mesh(offload.mesh)
    state, _, _ = restore_or_init(Checkpoints(tmp_path / "run" / CHECKPOINTS), offload, mesh)
    assert kinds(state.optimizer) == {host_memory.HOST}
    trees = {name: tree for name, tree in state.trees().items() if tree is not None}
    found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(trees)}
    saved = tiny.saved(tmp_path / "run")
    tiny.assert_equal(found, {path: array for path, array in saved.items() if "lanes" not in path})


def test_devices_without_host_memory_are_refused_in_one_line(tiny_config, tmp_path, monkeypatch):
    device = SimpleNamespace(device_kind="Abacus", addressable_memories=lambda: [SimpleNamespace(kind="beads")])
    message = r"^optimizer.offload=True: Abacus devices cannot use host memory \(.*\), only beads; expected False$"
    with pytest.raises(InputError, match=message):
        host_memory.check(SimpleNamespace(local_devices=[device]), "optimizer.offload=True")
    monkeypatch.setattr(host_memory, "HOST", "far away")
    with pytest.raises(InputError, match=r"optimizer.offload=True: cpu devices cannot use host memory"):
        loop.fit(offloaded(tiny_config), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
