"""Several processes of one run, with real signals: `jaxformer launch`, and processes that find each other by flags."""

import os
import re
import signal
import subprocess
import sys

import one_node_slurm
import pytest
import test_line
import tiny

from jaxformer import launch
from jaxformer.ending import STOPPED
from jaxformer.errors import InputError
from jaxformer.training import loop


def start(*arguments, **variables):
    """`python -m jaxformer ARGUMENTS` with two simulated devices."""
    command = [sys.executable, "-m", "jaxformer", *map(str, arguments)]
    environment = os.environ | tiny.flags(2) | variables
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def children(process):
    """The processes that the launcher has started, in the order of their numbers."""
    found = {}
    for status in tiny.Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == process.pid:
                variables = (status.parent / "environ").read_bytes().split(b"\0")
                number = next(one for one in variables if one.startswith(b"JAX_PROCESS_ID="))
                found[int(number.partition(b"=")[2])] = int(status.parent.name)
        except (OSError, StopIteration):
            continue
    return [found[number] for number in sorted(found)]


def is_alive(pid):
    try:
        return "Z" not in (tiny.Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


FEW = [
    "--data.validation",
    "None",
    "--optimizer.schedule.decay",
    "constant",
    "--checkpoint.every",
    10000,
    "--mesh.data",
    2,
]
"""Fields of runs that do little beside their steps, which do not depend on how many are to come."""
ENDLESS = ("--steps", 10000)


def assert_uninterrupted(folder, config):
    """The run in a folder has what one of this process, with as many steps, has."""
    steps = tiny.step_reached(folder)
    fields = {name[2:].replace(".", "__"): value for name, value in zip(FEW[::2], FEW[1::2], strict=True)}
    whole = folder.parent / "whole"
    loop.fit(tiny.load(config, **fields, steps=steps), whole, quiet=True)
    tiny.assert_equal(tiny.saved(folder), tiny.saved(whole), atol=1e-5)


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_the_same_command_resumes(tiny_config, tmp_path):
    parts = tmp_path / "parts"
    command = ("launch", "-n", 2, tiny_config, *FEW, "--workdir", parts)
    process = start(*command, *ENDLESS)
    tiny.wait_for(lambda: tiny.step_reached(parts) >= 3, process)
    started = children(process)
    process.send_signal(signal.SIGTERM)
    printed = tiny.finish(process, STOPPED)
    assert "ended with exit status" not in printed, "a stop is not a failure"
    (stopped,) = re.findall(r"stopped by SIGTERM at step (\d+), saved", printed)
    assert printed.count("first step after") == 1, "only process 0 has the terminal"
    assert len(started) == 2 and not any(map(is_alive, started))
    assert int(stopped) == tiny.step_reached(parts)
    tiny.finish(start(*command, "--steps", int(stopped) + 3))
    assert tiny.step_reached(parts) == int(stopped) + 3
    assert_uninterrupted(parts, tiny_config)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_launcher(tiny_config, tmp_path):
    process = start("launch", "-n", 2, tiny_config, *FEW, *ENDLESS, "--workdir", tmp_path / "run")
    tiny.wait_for(lambda: tiny.step_reached(tmp_path / "run") >= 2, process)
    first, second = children(process)
    os.kill(second, signal.SIGKILL)
    printed = tiny.finish(process, 128 + signal.SIGKILL)
    name = rf"process 1 of 2 \(.*, pid {second}\)"
    assert re.search(rf"^jaxformer: process 0 of 2: {name} ended without a message: killed", printed, re.MULTILINE)
    assert "jaxformer: launch: process 1 of 2 was ended by SIGKILL" in printed
    assert not is_alive(first) and "Traceback" not in printed


def start_by_flags(*each, wait=60):
    """A training process for the arguments of each, which find each other by flags."""
    address = f"127.0.0.1:{test_line.free_port()}"
    flags = ["--coordinator", address, "--processes", len(each), "--wait", wait]
    return [start("train", *one, *flags, "--process", number) for number, one in enumerate(each)]


@pytest.mark.slow
def test_processes_with_different_experiments_are_refused_in_one_line(tiny_config, tmp_path):
    folder = tmp_path / "run"
    same = (tiny_config, "--workdir", folder)
    for process in start_by_flags(same, (*same, "--seed", 7)):
        lines = tiny.finish(process, 2).splitlines()
        said = [line for line in lines if line.startswith("jaxformer: ")]
        assert len(said) == 1 and "process 1 differs from process 0: seed 7, not 0" in said[0]
        assert not any("Traceback" in line for line in lines)
    assert not folder.exists()


@pytest.mark.slow
def test_a_process_that_fails_at_its_start_does_not_leave_the_others_waiting(tiny_config, tmp_path):
    same = (tiny_config, "--workdir", tmp_path / "run")
    first, second = start_by_flags(same, (*same, "--model.transformer.widht", 3))
    told, reason = tiny.finish(first, 2), tiny.finish(second, 2)
    message = "--model.transformer.widht: no such field; perhaps --model.transformer.width"
    assert f"jaxformer: process 1 of 2: {message}" in reason
    assert re.search(rf"jaxformer: process 0 of 2: process 1 of 2 \(.*\) failed: {message}", told)


def test_devices_are_divided_and_must_divide(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=6 --b=2")
    environment = launch._environment(1, 3)
    assert environment["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=2 --b=2"
    assert (environment["JAX_NUM_PROCESSES"], environment["JAX_PROCESS_ID"]) == ("3", "1")
    with pytest.raises(InputError, match="-n 4 does not divide 6 simulated devices; expected one of 1, 2, 3, 6"):
        launch.launch(["-n", "4", "config.py"])
    monkeypatch.setattr(launch, "_gpus", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    assert launch._environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "GPU-c,GPU-d"
    with pytest.raises(InputError, match="-n 3 does not divide 4 GPUs; expected one of 1, 2, 4"):
        launch.launch(["-n", "3", "config.py"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "launch: the following arguments are required: -n"),
        (["-n", "2"], "launch: expected a config file, such as"),
        (["-n", "0", "a.py"], "launch: -n 0: expected at least 1"),
        (["-n", "two", "a.py"], "launch: argument -n: invalid int value: 'two'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        launch.launch(arguments)


def script_of_the_page(config, folder):
    """The script of docs/launch/slurm.md, for two tasks on the CPU of one node, in this folder."""
    page = (tiny.ROOT / "docs" / "launch" / "slurm.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    for words, ours in (
        ("--nodes=2", "--nodes=1"),
        ("--ntasks-per-node=8", "--ntasks-per-node=2"),
        ("#SBATCH --gpus-per-node=8\n", ""),
        ("#SBATCH --cpus-per-task=8\n", "#SBATCH --overcommit\n"),
        ("srun jaxformer", f"srun --overcommit {sys.executable} -m jaxformer"),
        ("train gpt2_small", f"train {config} {' '.join(map(str, FEW))} --steps $(cat steps)"),
        ("runs/gpt2", "runs/tiny"),
    ):
        assert script.count(words) == 1, words
        script = script.replace(words, ours)
    (folder / "tiny.sh").write_text(script, encoding="utf-8")
    return folder / "tiny.sh"


@pytest.mark.slow
def test_the_slurm_page_trains_saves_and_resumes(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, asked = tmp_path / "runs" / "tiny", one_node_slurm.asked
    (tmp_path / "steps").write_text(str(ENDLESS[1]))
    with one_node_slurm.running(tmp_path / "slurm"):
        script = script_of_the_page(tiny_config, tmp_path)
        with monkeypatch.context() as of_the_job:
            of_the_job.setenv("XLA_FLAGS", tiny.flags()["XLA_FLAGS"])
            job = asked("sbatch", "--parsable", script).strip()
        printed = tmp_path / f"slurm-{job}.out"

        def has(state):
            return f"JobState={state}" in asked("scontrol", "show", "job", job)

        def wait_for(happened, what):
            one_node_slurm.wait_for(lambda: happened() or has("FAILED"), what)
            assert not has("FAILED"), printed.read_text()

        wait_for(lambda: tiny.step_reached(run) >= 3, "the third step")
        asked("scancel", "--signal=TERM", job)
        one_node_slurm.wait_for(lambda: has("FAILED"), "the end after SIGTERM")
        assert f"ExitCode={STOPPED}:0" in asked("scontrol", "show", "job", job)
        (stopped,) = re.findall(r"stopped by SIGTERM at step (\d+), saved", printed.read_text())
        (tmp_path / "steps").write_text(str(int(stopped) + 3))
        asked("scontrol", "requeue", job)
        asked(
            "scontrol", "update", f"JobId={job}", "StartTime=now+10"
        )  # Not the usual two minutes; but later than the end.
        wait_for(lambda: has("COMPLETED"), "the end of the requeued job")
    assert tiny.step_reached(run) == int(stopped) + 3, printed.read_text()
    assert_uninterrupted(run, tiny_config)
