"""A run's folder in a bucket: starts that fail or are killed, foreign objects, logs and checkpoints."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_config import message, write_config

from jaxformer import config, storage
from jaxformer.config import Checkpoint
from jaxformer.errors import InputError
from jaxformer.evaluations import BestMetric
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs import run, writing
from jaxformer.runs.bucket import LEASE
from jaxformer.runs.folder import EXPERIMENT, STARTING
from jaxformer.training import log_files
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.damage import first_good
from jaxformer.training.log_files import LogFiles


@pytest.fixture
def experiment(tmp_path):
    return config.load(write_config(tmp_path))


@pytest.fixture
def folder(bucket):
    return storage.path(bucket.path("runs/a"))


def test_a_start_makes_the_folder_a_runs_and_gives_the_lease_back(bucket, folder, experiment):
    with writing.writer(folder, experiment) as claimed:
        assert not claimed.is_run
        (claimed.tokenizer / "tokenizer.json").write_text("{}")
        claimed.start(config.to_json(experiment))
        assert claimed.is_run and claimed.moved() == ""
    assert set(bucket.listed()) == {f"runs/a/{name}" for name in (LEASE, EXPERIMENT, "tokenizer/tokenizer.json")}
    assert writing.read_experiment(folder, known=experiment) == experiment
    with writing.writer(folder, experiment) as claimed:
        assert claimed.is_run and claimed.tokenizer == folder / "tokenizer"


def test_a_start_that_fails_leaves_nothing(bucket, folder, experiment):
    with pytest.raises(ZeroDivisionError), writing.writer(folder, experiment) as claimed:
        (claimed.tokenizer / "tokenizer.json").write_text("{}")
        raise ZeroDivisionError
    assert bucket.listed() == {}


@pytest.mark.parametrize("copied", [False, True])
def test_what_a_killed_start_has_left_is_cleared_away(copied, bucket, folder, experiment):
    bucket.put(f"runs/a/{STARTING}/tokenizer/tokenizer.json", b"{}")
    if copied:
        bucket.put("runs/a/tokenizer/tokenizer.json", b"{}")
    with writing.writer(folder, experiment):
        assert set(bucket.listed()) == {f"runs/a/{LEASE}"}


@pytest.mark.parametrize("key", ["thesis.tex", "tokenizer/tokenizer.json"])
def test_foreign_objects_are_refused_and_kept(key, bucket, folder, experiment):
    bucket.put(f"runs/a/{key}", b"mine")
    bucket.put(f"runs/a/{STARTING}/tokenizer/tokenizer.json", b"{}")
    before = bucket.listed()
    with pytest.raises(InputError, match=f"holds {key.split('/')[0]} but no run"), writing.writer(folder, experiment):
        pass
    assert bucket.listed() == before


def test_a_lease_that_is_lost_ends_training_in_one_line_and_removes_nothing(bucket, folder, experiment):
    with pytest.raises(InputError) as caught, writing.writer(folder, experiment) as claimed:
        claimed.start(config.to_json(experiment))
        bucket.put(f"runs/a/{LEASE}", b'{"owner": "another", "process": 7, "host": "far"}')
        claimed._lease._began -= 100
        claimed.check()
    assert "taken over by process 7 on far" in str(caught.value) and "training has ended" in str(caught.value)
    assert f"runs/a/{EXPERIMENT}" in bucket.listed()


def test_folders_without_a_run_are_reported(bucket):
    assert "there is no such folder" in message(run.open_run, bucket.path("none"))
    bucket.put("some/file", b"")
    assert "not a run's folder: experiment.json" in message(run.open_run, bucket.path("some"))
    assert "there is no bucket nowhere" in message(run.open_run, f"{bucket.scheme}://nowhere/run")


def test_logs_are_copied_whole_and_cut(bucket, folder, monkeypatch):
    bucket.put("runs/a/metrics.jsonl", b"before\n")
    logs = LogFiles(folder, moved=lambda: "")
    assert (logs.home / "metrics.jsonl").read_bytes() == b"before\n"
    (logs.home / "tensorboard").mkdir()
    (logs.home / "tensorboard" / "events").write_bytes(b"1")
    (logs.home / "metrics.jsonl").write_bytes(b"first\n")
    logs.flush()
    assert bucket.listed() == {"runs/a/metrics.jsonl": b"first\n", "runs/a/tensorboard/events": b"1"}
    (logs.home / "metrics.jsonl").write_bytes(b"first\nsecond\n")
    logs.copy_soon()
    assert bucket.listed()["runs/a/metrics.jsonl"] == b"first\n"  # Not soon again.
    monkeypatch.setattr(log_files, "EVERY", 0.0)
    logs.copy_soon()
    logs.close()
    assert bucket.listed()["runs/a/metrics.jsonl"] == b"first\nsecond\n" and not logs.home.exists()


def test_logs_are_not_copied_once_the_lease_is_lost(bucket, folder):
    logs = LogFiles(folder, moved=lambda: "taken over")
    (logs.home / "metrics.jsonl").write_bytes(b"late\n")
    logs.close()
    assert bucket.listed() == {}


def trees(step):
    mesh = sharding.make_mesh(Mesh(2, 2, 2))
    kernel = jax.device_put(jnp.arange(32.0).reshape(8, 4) + step, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    return {"params": {"kernel": kernel}, "average": None}


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


LOSS = BestMetric("validation", "loss", higher_is_better=False)


@pytest.mark.slow
def test_checkpoints_are_kept_restored_and_removed(bucket, folder):
    with Checkpoints(folder / "checkpoints", Checkpoint(keep=2, best="loss"), best=LOSS) as saved:
        for step, value in enumerate([1.0, 3.0, 2.0, 2.5], 1):
            saved.save(step, trees(step), {LOSS.key: value})
        saved.wait()
    reading = Checkpoints(folder / "checkpoints")
    assert reading.steps == [4, 3, 1] and reading.best_first(LOSS) == [1, 3, 4]
    restored = reading.restore(abstract(trees(0)), 3)
    np.testing.assert_array_equal(restored["params"]["kernel"], trees(3)["params"]["kernel"])
    stored = reading.stored(abstract(trees(0)), 1)
    np.testing.assert_array_equal(np.asarray(stored["params"]["kernel"]), trees(1)["params"]["kernel"])


@pytest.mark.slow
def test_a_checkpoint_without_its_last_object_is_none_and_a_damaged_one_is_set_aside(bucket, folder):
    with Checkpoints(folder / "checkpoints", Checkpoint(keep=9)) as saved:
        for step in (1, 2, 3):
            saved.save(step, trees(step), None)
        saved.wait()
    for file in (folder / "checkpoints" / "3").iterdir():
        if file.name == "commit_success.txt":
            file.unlink()  # As where a writer was killed.
    data = [key for key in bucket.listed() if key.startswith("runs/a/checkpoints/2/params/") and "/d/" in key]
    for key in data:
        bucket.put(key, b"")
    with Checkpoints(folder / "checkpoints", Checkpoint(keep=9)) as saved:
        assert saved.steps == [2, 1]
        step, _, damaged = first_good(saved.steps, lambda step: saved.restore(abstract(trees(0)), step))
        assert step == 1 and len(damaged) == 1
        saved.set_aside(step, folder / "damaged")
        assert saved.steps == [1]
    assert any(key.startswith("runs/a/damaged/2/") for key in bucket.listed())


@pytest.mark.slow
def test_a_checkpoint_that_is_out_of_reach_is_not_damaged(bucket, folder):
    with Checkpoints(folder / "checkpoints", Checkpoint()) as saved:
        saved.save(1, trees(1), None)
        saved.wait()
    bucket.faults.add(lambda method, url: "/d/" in url.replace("%2F", "/"), 403, times=10_000)
    reading = Checkpoints(folder / "checkpoints")
    with pytest.raises(InputError, match="cannot be read"):
        first_good([1], lambda step: reading.restore(abstract(trees(0)), step))


@pytest.mark.slow
def test_checkpoints_survive_throttling(bucket, folder):
    bucket.faults.add(lambda method, url: "/d/" in url.replace("%2F", "/"), 503, times=3)
    began = time.monotonic()
    with Checkpoints(folder / "checkpoints", Checkpoint()) as saved:
        saved.save(1, trees(1), None)
        saved.wait()
    restored = Checkpoints(folder / "checkpoints").restore(abstract(trees(0)), 1)
    np.testing.assert_array_equal(restored["params"]["kernel"], trees(1)["params"]["kernel"])
    assert time.monotonic() - began < 120
