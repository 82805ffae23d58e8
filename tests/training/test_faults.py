"""Runs survive being killed, stopped, moved to fewer devices, or started twice. Real processes throughout."""

import functools
import random
import signal

import pytest
import tiny

from jaxformer import cli
from jaxformer.ending import STOPPED
from jaxformer.runs import run, writing
from jaxformer.runs.folder import STARTING

STEPS = 24


FLAGS = (*tiny.PACKED, "--optimizer.schedule.decay", "constant")
"""A run that packs, whose schedule does not look at the number of steps: a shorter run is the beginning of a longer
one. `jaxformer drill`, in tests/test_drills.py, kills and stops one that does neither.
"""


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory):
    """The folder of a run from start to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    tiny.finish(tiny.start(tiny_config, *FLAGS, "--workdir", folder))
    return folder


def assert_same_run(folder, expected, **tolerance):
    """Both have logged every step once, with the same losses, and ended with the same state and evaluations."""
    for split in ("train", "validation"):
        ours, theirs = tiny.metrics(folder, split), tiny.metrics(expected, split)
        assert [values["step"] for values in ours] == [values["step"] for values in theirs]
        losses = [[values["loss"] for values in lines] for lines in (ours, theirs)]
        assert losses[0] == (pytest.approx(losses[1], **tolerance) if tolerance else losses[1])
    tiny.assert_equal(tiny.saved(folder), tiny.saved(expected), **tolerance)


def is_saving(folder):
    """Whether a checkpoint is half written."""
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(undisturbed, tiny_config, tmp_path):
    folder, chance = tmp_path / "run", random.Random(0)
    starts = [(100, folder.exists), (110, lambda: any((folder / STARTING).glob("tokenizer*")))]
    for vocab, moment in starts:
        process = tiny.start(tiny_config, "--tokenizer.vocab", vocab, "--workdir", folder)
        tiny.wait_for(moment, process)
        kill(process)  # Its leftovers belong to another experiment, and must not be an obstacle.
    moments = [
        lambda: is_saving(folder),
        lambda after=chance.randint(1, 12): tiny.step_reached(folder) >= after,
        lambda after=chance.randint(8, STEPS - 1): tiny.step_reached(folder) >= after,
    ]
    for moment in moments:
        process = tiny.start(tiny_config, *FLAGS, "--workdir", folder)
        tiny.wait_for(moment, process)
        kill(process)
    tiny.finish(tiny.start(tiny_config, *FLAGS, "--workdir", folder))
    assert_same_run(folder, undisturbed)
    assert not is_saving(folder)


@pytest.mark.slow
def test_a_run_stopped_at_any_moment_saves_reports_it_and_resumes(undisturbed, tiny_config, tmp_path):
    folder, steps = tmp_path / "run", {}
    process = tiny.start(tiny_config, *FLAGS, "--workdir", folder)
    tiny.wait_for((folder / ".lock").exists, process)
    process.send_signal(signal.SIGTERM)  # While the run prepares, there is nothing to save.
    text = tiny.finish(process, status=STOPPED)
    assert "jaxformer: stopped by SIGTERM before its first step: nothing is lost; run the same command" in text
    assert not folder.exists()
    moments = {
        "training": (lambda _: tiny.step_reached(folder) >= 5, signal.SIGTERM),
        "evaluating": (lambda _: tiny.step_reached(folder) >= 12, signal.SIGTERM),
    }
    for name, (moment, number) in moments.items():
        process = tiny.start(tiny_config, *FLAGS, "--workdir", folder)
        tiny.wait_for(functools.partial(moment, process), process)
        process.send_signal(number)
        text = tiny.finish(process, status=STOPPED)
        steps[name] = run.open_run(folder).step
        assert f"stopped by {number.name} at step {steps[name]}, saved" in text
    assert 5 <= steps["training"] < steps["evaluating"] == 12
    tiny.finish(tiny.start(tiny_config, *FLAGS, "--workdir", folder))
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_only_one_process_writes_to_a_run(tiny_config, tmp_path, capsys):
    folder = tmp_path / "run"
    first = tiny.start(tiny_config, "--workdir", folder)
    tiny.wait_for(lambda: tiny.step_reached(folder) >= 1, first)
    first.send_signal(signal.SIGSTOP)  # It must not end before the other one tries.
    capsys.readouterr()
    assert cli.main(["train", str(tiny_config), "--workdir", str(folder)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(folder) in line and "another process" in line
    kill(first)
    with writing.writer(folder, tiny.load(tiny_config)):
        pass  # The kernel has taken back the dead one's right.


@pytest.mark.slow
def test_a_packed_run_resumes_on_fewer_devices_where_it_stopped(undisturbed, tiny_config, tmp_path):
    folder = tmp_path / "run"
    for devices, steps in [(8, 8), (4, 16), (2, STEPS)]:
        ends = ("--evaluation.every", "100", "--steps", steps)
        tiny.finish(tiny.start(tiny_config, *FLAGS, *ends, "--workdir", folder, devices=devices))
    ours, theirs = tiny.saved(folder), tiny.saved(undisturbed)
    [lanes] = [path for path in ours if "lanes" in path]
    # The lanes' integers name each document visited and each example that waits: none is repeated or missing.
    assert ours[lanes].tolist() == theirs[lanes].tolist()
    pairs = zip(tiny.metrics(folder), tiny.metrics(undisturbed), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], abs=1e-5) for one, other in pairs)


@pytest.mark.slow
def test_a_run_that_is_renamed_while_it_trains_ends_in_a_line_and_loses_nothing(tiny_config, tmp_path):
    moments = {
        "saving": lambda folder: is_saving(folder),
        "training": lambda folder: tiny.step_reached(folder) >= 30,
        "early": lambda folder: tiny.step_reached(folder) >= 1,
    }
    flags = ("--checkpoint.every", "5", "--evaluation.every", "100000")
    for name, moment in moments.items():
        folder, elsewhere = tmp_path / name, tmp_path / f"{name}-elsewhere"
        process = tiny.start(tiny_config, *flags, "--steps", "100000", "--workdir", folder)
        tiny.wait_for(functools.partial(moment, folder), process)
        folder.rename(elsewhere)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 2, out + err
        [line] = [line for line in err.splitlines() if not line.endswith("…")]  # What takes long is named too.
        assert line.startswith(f"jaxformer: --workdir {folder}: the run was moved to {elsewhere}; ")
        assert not folder.exists() and (elsewhere / "experiment.json").exists()
        assert tiny.step_reached(elsewhere) < 100000
    # The run resumes from its last checkpoint, at its new path.
    steps = tiny.step_reached(elsewhere) + 20
    tiny.finish(tiny.start(tiny_config, *flags, "--steps", steps, "--workdir", elsewhere))
    assert [line["step"] for line in tiny.metrics(elsewhere)] == list(range(1, steps + 1))


def test_a_failure_while_setting_up_leaves_no_folder(tiny_config, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    folder = tmp_path / "deep" / "run"
    for name in ("preparation.check_tokenizer", "loop.Checkpoints", "loop.restore_or_init", "preparation.Evaluations"):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(f"jaxformer.training.{name}", fail)
            cli.main(["train", str(tiny_config), "--workdir", str(folder)])
        assert not (tmp_path / "deep").exists()
