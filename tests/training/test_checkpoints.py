"""Checkpoints that are kept and removed, restored values, and half-written checkpoints."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.config import Checkpoint
from jaxformer.errors import InputError
from jaxformer.evaluations import BestMetric
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training import checkpoint_arrays
from jaxformer.training.checkpoint_arrays import loaded
from jaxformer.training.checkpoint_digests import write_digests
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.damage import Damaged, first_good


@pytest.fixture
def mesh():
    return sharding.make_mesh(Mesh(2, 2, 2))


@pytest.fixture
def trees(mesh):
    """Makes the trees of a step, each array laid on the mesh in its own way."""

    def make(step):
        split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
        kernel = jax.device_put(jnp.arange(32.0).reshape(8, 4) + step, split)
        count = jax.device_put(jnp.int32(step), NamedSharding(mesh, PartitionSpec()))
        return {"params": {"kernel": kernel}, "average": None, "training": {"step": count, "moments": [kernel * 2]}}

    return make


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def steps_kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


LOSS = BestMetric("validation", "loss", higher_is_better=False)


def save_all(folder, settings, trees, values, best=LOSS):
    """Saves a step for each value of a metric; None was not evaluated."""
    with Checkpoints(folder, settings, best=best if settings.best else None) as saved:
        for step, value in enumerate(values, 1):
            saved.save(step, trees(step), None if value is None else {best.key: value})
        saved.wait()


def test_a_checkpoint_gives_back_every_bit_and_leaves_out_none(trees, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    restored = Checkpoints(tmp_path).restore(abstract(trees(1)))
    assert restored["average"] is None
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(trees(1)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)


def test_arrays_are_read_in_parts_where_there_are_many(trees, tmp_path, monkeypatch):
    save_all(tmp_path, Checkpoint(), trees, [None])
    monkeypatch.setattr(checkpoint_arrays, "AT_ONCE", 4)
    restored = Checkpoints(tmp_path).restore(abstract(trees(1)))
    jax.tree.map(np.testing.assert_array_equal, restored, trees(1))


def test_stored_arrays_are_read_when_asked_for(trees, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    stored = Checkpoints(tmp_path).stored(abstract(trees(1)), 1)
    assert stored["average"] is None
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(trees(1)), strict=True):
        assert (ours.shape, ours.dtype, ours.sharding) == (theirs.shape, theirs.dtype, theirs.sharding)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    for ours, theirs in zip(jax.tree.leaves(loaded(stored)), jax.tree.leaves(trees(1)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.sharding == theirs.sharding
    for file in tmp_path.rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError):
        np.asarray(jax.tree.leaves(stored)[0])


def test_stored_arrays_of_other_shapes_are_refused_before_they_are_read(trees, mesh, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    with pytest.raises(InputError, match="expected float32"):
        Checkpoints(tmp_path).stored({"params": {"kernel": replicated((8, 5), np.float32, mesh)}}, 1)


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_nothing_is_compressed_and_what_once_was_is_read(mesh, tmp_path):
    zeros = {"params": {"zeros": jax.device_put(jnp.zeros(100_000), NamedSharding(mesh, PartitionSpec()))}}
    save_all(tmp_path / "new", Checkpoint(), lambda _: zeros, [None])
    assert bytes_in(tmp_path / "new") > 400_000
    with ocp.CheckpointManager(tmp_path / "old") as old:
        old.save(1, args=ocp.args.Composite(params=ocp.args.StandardSave(zeros["params"])))
    write_digests(tmp_path / "old" / "1")
    assert bytes_in(tmp_path / "old") < 40_000
    for folder in ("new", "old"):
        restored = Checkpoints(tmp_path / folder).restore(abstract(zeros))
        np.testing.assert_array_equal(restored["params"]["zeros"], np.zeros(100_000))


def test_a_checkpoint_of_the_time_of_compression_is_read(trees, tmp_path):
    saved = {name: ocp.args.StandardSave(tree) for name, tree in trees(1).items() if tree is not None}
    with ocp.CheckpointManager(tmp_path) as old:
        old.save(1, args=ocp.args.Composite(**saved))
    write_digests(tmp_path / "1")
    restored = Checkpoints(tmp_path).restore(abstract(trees(1)))
    jax.tree.map(np.testing.assert_array_equal, restored, trees(1))


@pytest.mark.parametrize(
    "wanted, said",
    [
        (
            {"kernel": ((4, 8), jnp.float32)},
            "params/kernel is float32 [8, 4] in the checkpoint; expected float32 [4, 8]",
        ),
        (
            {"kernel": ((8, 4), jnp.bfloat16)},
            "params/kernel is float32 [8, 4] in the checkpoint; expected bfloat16 [8, 4]",
        ),
        ({"kernel": ((8, 4), jnp.int32)}, "expected int32 [8, 4]"),
        ({"kernel": ((8, 4), jnp.float32), "bias": ((4,), jnp.float32)}, "the checkpoint has no params/bias"),
        ({"weights": {"kernel": ((8, 4), jnp.float32)}}, "the checkpoint also has params/kernel"),
    ],
)
def test_what_is_not_what_was_asked_for_is_refused_in_a_line(wanted, said, trees, mesh, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    tree = jax.tree.map(lambda leaf: replicated(*leaf, mesh), wanted, is_leaf=lambda leaf: isinstance(leaf, tuple))
    with pytest.raises(InputError) as caught:
        Checkpoints(tmp_path).restore({"params": tree})
    assert said in str(caught.value) and str(tmp_path / "1") in str(caught.value) and "\n" not in str(caught.value)


def test_a_tree_that_was_not_saved_is_refused_in_a_line(trees, mesh, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    with pytest.raises(InputError, match=r"the checkpoint has no average$"):
        Checkpoints(tmp_path).restore({"average": {"kernel": replicated((8, 4), jnp.float32, mesh)}})


def test_numbers_may_become_wider(mesh, tmp_path):
    kept = jax.device_put(jnp.arange(8, dtype=jnp.bfloat16) / 7, NamedSharding(mesh, PartitionSpec()))
    with Checkpoints(tmp_path, Checkpoint()) as saved:
        saved.save(1, {"params": {"scale": kept}}, None)
        saved.wait()
    restored = Checkpoints(tmp_path).restore({"params": {"scale": replicated((8,), jnp.float32, mesh)}})
    assert restored["params"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(restored["params"]["scale"], np.asarray(kept, np.float32))


def test_one_tree_is_read_alone_and_onto_another_mesh(trees, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    other = sharding.make_mesh(Mesh(1, 1, 1))
    restored = Checkpoints(tmp_path).restore({"params": {"kernel": replicated((8, 4), jnp.float32, other)}})
    assert restored.keys() == {"params"}
    assert restored["params"]["kernel"].sharding.mesh == other
    np.testing.assert_array_equal(np.asarray(restored["params"]["kernel"]), np.arange(32.0).reshape(8, 4) + 1)


def test_arrays_may_be_donated_as_soon_as_they_are_given_to_save(trees, tmp_path):
    with Checkpoints(tmp_path, Checkpoint()) as saved:
        given, expected = trees(1), abstract(trees(1))
        saved.save(1, given, None)
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(given)
        saved.wait()
        kernel = saved.restore(expected)["params"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel), np.arange(32.0).reshape(8, 4) + 1)


def test_the_latest_are_kept(trees, tmp_path):
    save_all(tmp_path, Checkpoint(keep=2), trees, [None] * 5)
    assert steps_kept(tmp_path) == [4, 5]
    assert Checkpoints(tmp_path).latest == 5


@pytest.mark.parametrize("metric, higher_is_better, best", [("loss", False, 2), ("accuracy", True, 3)])
def test_the_best_is_kept_beside_the_latest(metric, higher_is_better, best, trees, tmp_path):
    values = [None, 3.0, 7.0, 5.0, None]
    kept = BestMetric("validation", metric, higher_is_better)
    save_all(tmp_path, Checkpoint(keep=1, best=metric), trees, values, kept)
    assert steps_kept(tmp_path) == [best, 5]


def test_checkpoints_from_before_the_metric_was_evaluated_rank_last(trees, tmp_path):
    save_all(tmp_path, Checkpoint(keep=2, best="loss"), trees, [2.0, 1.0])
    other = BestMetric("validation", "other", False)
    with Checkpoints(tmp_path, Checkpoint(keep=1, best="other"), best=other) as saved:
        for step, value in ((3, 0.5), (4, 0.7), (5, 0.9)):
            saved.save(step, trees(step), {other.key: value})
        saved.wait()
    assert steps_kept(tmp_path) == [3, 5]


def test_saving_a_step_again_does_nothing(trees, tmp_path):
    with Checkpoints(tmp_path, Checkpoint()) as saved:
        saved.save(3, trees(3), None)
        saved.save(3, trees(4), None)
        saved.wait()
        saved.save(3, trees(5), None)
        assert int(saved.restore(abstract(trees(3)))["training"]["step"]) == 3
    assert steps_kept(tmp_path) == [3]


def test_a_half_written_checkpoint_is_not_the_latest_and_is_cleared_away(trees, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None])
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    assert Checkpoints(tmp_path).latest == 1 and half.exists(), "a reader touches nothing"
    with Checkpoints(tmp_path, Checkpoint()) as saved:
        assert saved.latest == 1
        saved.save(3, trees(3), None)  # Orbax clears away in the background, and waits for it before it saves.
    assert not half.exists() and Checkpoints(tmp_path).latest == 3


def test_an_empty_folder_has_no_latest(tmp_path):
    assert Checkpoints(tmp_path).latest is None


def test_reading_says_nothing(trees, tmp_path, caplog):
    save_all(tmp_path, Checkpoint(), trees, [None])
    caplog.clear()
    Checkpoints(tmp_path).restore(abstract(trees(1)))
    assert not caplog.records


@pytest.mark.parametrize("higher_is_better, expected", [(False, 2), (True, 1)])
def test_the_best_one_is_found_and_kept_by_who_opens_the_folder_again(higher_is_better, expected, trees, tmp_path):
    settings, best = Checkpoint(keep=1, best="score"), BestMetric("validation", "score", higher_is_better)
    save_all(tmp_path, settings, trees, [3.0, 1.0, None, 1.5, 2.0], best)
    with Checkpoints(tmp_path, settings, best=best) as saved:
        assert saved.best(best) == expected
        saved.save(6, trees(6), {best.key: float("nan")})
        saved.wait()
    assert steps_kept(tmp_path) == [expected, 6]
    reading = Checkpoints(tmp_path)
    assert reading.best(best) == expected and reading.results(expected) == {best.key: 3.0 if expected == 1 else 1.0}
    assert reading.best(BestMetric("validation", "other", False)) is None


def damages(file):
    """Harm to a file: it is gone, empty, or cut in two."""
    yield file.unlink
    yield lambda: file.write_bytes(b"")
    yield lambda: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
def test_whatever_file_of_a_checkpoint_is_damaged_it_is_read_rightly_or_not_at_all(trees, tmp_path):
    wanted = {"params": abstract(trees(1))["params"]}
    save_all(tmp_path / "good", Checkpoint(best="loss"), lambda step: {"params": trees(step)["params"]}, [2.0, 1.0])
    files = [path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file() and path.stat().st_size]
    refused = 0
    for number, (file, harm) in enumerate((file, harm) for file in files for harm in range(3)):
        copy = shutil.copytree(tmp_path / "good", tmp_path / str(number))
        list(damages(copy / file.relative_to(tmp_path / "good")))[harm]()
        saved = Checkpoints(copy)
        step, restored, lines = first_good(saved.steps, functools.partial(saved.restore, wanted))
        jax.tree.map(np.testing.assert_array_equal, restored["params"], trees(step)["params"])
        assert saved.best_first(LOSS)[0] in (1, 2)
        refused += step == 1
        assert [line.startswith(f"{copy / '2'}: ") and "\n" not in line for line in lines] == [True] * (step == 1)
    assert refused > len(files) // 2


@pytest.mark.slow
def test_a_folder_of_a_checkpoint_that_is_gone_makes_it_a_damaged_one(trees, tmp_path):
    save_all(tmp_path, Checkpoint(), trees, [None] * 3)
    shutil.rmtree(tmp_path / "3" / "training")
    shutil.rmtree(tmp_path / "2" / "params" / "d")
    saved = Checkpoints(tmp_path)
    step, _, [newest, older] = first_good(saved.steps, lambda step: saved.restore(abstract(trees(1)), step))
    missing = f"{tmp_path / '3'}: damaged: training/_METADATA is missing (and "
    assert step == 1 and newest.startswith(missing) and f"{tmp_path / '2'}: damaged: params/d/" in older
    shutil.rmtree(tmp_path / "1" / "params")
    with pytest.raises(Damaged, match=r"3: damaged: training/.*; .*2: damaged: .*; .*1: damaged: params/"):
        first_good(saved.steps, lambda step: saved.restore(abstract(trees(1)), step))


def test_a_lack_of_memory_is_not_damage(trees, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    save_all(tmp_path, Checkpoint(), trees, [None])
    monkeypatch.setattr(checkpoint_arrays, "restored", fail)
    with pytest.raises(MemoryError):
        Checkpoints(tmp_path).restore(abstract(trees(1)))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ValueError("PERMISSION_DENIED: Open")])
def test_a_lack_of_permission_is_not_damage(error, trees, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("reading failed") from error

    save_all(tmp_path, Checkpoint(), trees, [None] * 2)
    monkeypatch.setattr(checkpoint_arrays, "restored", fail)
    saved = Checkpoints(tmp_path)
    with pytest.raises(
        InputError, match=rf"{tmp_path / '2'}: cannot be read: .*(PERMISSION_DENIED|Permission denied)"
    ) as caught:
        first_good(saved.steps, lambda step: saved.restore(abstract(trees(1)), step))
    assert not isinstance(caught.value, Damaged)


def test_damaged_checkpoints_are_moved_and_their_steps_saved_again(trees, tmp_path):
    save_all(tmp_path / "c", Checkpoint(), trees, [None] * 3)
    for _ in range(2):
        (tmp_path / "c" / "3" / "mine").write_text("mine")
        with Checkpoints(tmp_path / "c", Checkpoint()) as saved:
            saved.set_aside(2, tmp_path / "damaged")
            assert saved.latest == 2
            saved.save(3, trees(3), None)
            saved.wait()
    assert steps_kept(tmp_path / "c") == [1, 2, 3]
    assert all((tmp_path / "damaged" / name / "mine").exists() for name in ("3", "3-2"))
    with Checkpoints(tmp_path / "c", Checkpoint()) as saved:
        saved.set_aside(3, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_error_on_its_way_is_not_replaced_by_one_of_closing(trees, tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "c", Checkpoint()) as saved:
        saved.save(1, trees(1), None)
        saved.wait()
        monkeypatch.setattr(saved._manager, "close", lambda: (saved._manager.wait_until_finished(), 1 / "no number"))
        raise ZeroDivisionError
