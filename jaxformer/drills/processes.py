"""Drills that kill or stop the process of a small training run, resume it, and compare its last checkpoint with that of
an undisturbed run. A drill is a part of `jaxformer drill`, which harms a run on purpose and checks that it recovers.
"""

import contextlib
import math
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from jaxformer.drills.scratch import EVERY, STEPS, Outcome, Scratch, differing, latest
from jaxformer.ending import STOPPED
from jaxformer.runs.folder import EXPERIMENT, STARTING
from jaxformer.runs.history import METRICS, read_history

EXIT_TIMEOUT = 300.0
"""Maximum time in seconds to wait for the end of a training process, in addition to the time that training needs. A
process that takes longer is killed and counts as failed.
"""
_STEP = re.compile(r"step +(\d+)/")
_Phase = Callable[[Path, subprocess.Popen[str]], bool]


def kills(scratch: Scratch, count: int) -> Outcome:
    """Kills a small training run with SIGKILL at `count` random moments of training and saving, and resumes it each
    time. When a run reaches its last step, compares its last checkpoint with that of the undisturbed run (the same
    training without kills), and starts another run.
    """
    draw, seconds, problems, lost, resumed = random.Random(0), [], [], 0, 0
    folder, window = scratch.new("killed"), 2 * EVERY * scratch.seconds / STEPS
    for _ in range(count):
        began, process = time.monotonic(), scratch.start(folder)
        while not wait_for_step(process):
            status, said = ended(process, EXIT_TIMEOUT)
            if status:
                return Outcome("SIGKILL", count, resumed, 0, lost, seconds, [*problems, f"{folder}: {_last(said)}"])
            problems += filter(None, [difference(scratch, folder)])
            folder = scratch.new("killed")
            process = scratch.start(folder)
        seconds.append(time.monotonic() - began)
        time.sleep(draw.uniform(0, window))
        process.kill()
        process.communicate()
        lost, resumed = max(lost, logged(folder) - latest(folder)), resumed + 1
    problems += filter(None, [finish(scratch, folder)])
    return Outcome("SIGKILL", count, resumed - len(problems), 0, lost, seconds, problems)


def stops(scratch: Scratch, count: int) -> Outcome:
    """Sends SIGTERM and SIGINT to small training runs, each in up to `count` phases, such as compiling, training or
    saving. Checks that the run saves its state, unless it has none yet, and exits with status 75. Then resumes it, and
    compares its last checkpoint with that of the undisturbed run (the same training without signals).
    """
    seconds, problems, lost, tried = [], [], 0, 0
    for number in (signal.SIGTERM, signal.SIGINT):
        for name, reached in list(_phases().items())[:count]:
            folder, tried = scratch.new(f"stopped-{name}"), tried + 1
            process, fault = scratch.start(folder), f"{number.name} while {name}"
            if not reached(folder, process):
                problems.append(f"{fault}: the run ended before: {_last(ended(process, EXIT_TIMEOUT)[1])}")
                continue
            began = time.monotonic()
            process.send_signal(number)
            status, said = ended(process, EXIT_TIMEOUT)
            seconds.append(time.monotonic() - began)
            if status != STOPPED or "stopped by" not in said:
                problems.append(f"{fault}: status {status}: {_last(said)}")
                continue
            lost = max(lost, logged(folder) - latest(folder))
            problems += filter(None, [finish(scratch, folder)])
    return Outcome("SIGTERM, SIGINT", tried, tried - len(problems), 0, lost, seconds, problems)


def _phases() -> dict[str, _Phase]:
    """Returns a dict that maps the name of each phase of a run, such as "saving", to a function that waits for this
    phase. The function takes the folder and the process of the run. It returns False if the process ends first, and
    otherwise True.
    """

    def started(folder: Path) -> bool:
        return any((folder / name).exists() for name in (STARTING, ".lease", EXPERIMENT))

    return {
        "training": lambda folder, process: wait_for_step(process, EVERY + 1),
        "saving": lambda folder, process: wait_for_step(process, EVERY),
        "evaluating": lambda folder, process: wait_for_step(process, STEPS // 2),
        "compiling": lambda folder, process: bool(process.stdout and process.stdout.readline()),
        "preparing": lambda folder, process: wait_until(lambda: started(folder), process),
    }


def finish(scratch: Scratch, folder: Path) -> str:
    """Resumes a run and trains it to its last step. Returns an error message if the process fails or if the last
    checkpoint differs from that of the undisturbed run (the same training without faults), and otherwise an empty
    string.
    """
    status, said = ended(scratch.start(folder), scratch.seconds + EXIT_TIMEOUT)
    return f"{folder}: resuming ended with status {status}: {_last(said)}" if status else difference(scratch, folder)


def difference(scratch: Scratch, folder: Path) -> str:
    """Compares the last checkpoint of a run with that of the undisturbed run (the same training without faults).
    Returns a message that names the first array that differs, or an empty string if all are equal.
    """
    return differing(folder, scratch.state(folder), scratch.expected)


def logged(folder: Path) -> int:
    """Returns the last training step that a run has logged; 0 if there is none."""
    if not (folder / METRICS).exists():
        return 0
    lines, _ = read_history(folder / METRICS)
    return max((int(line["step"]) for line in lines if line["split"] == "train"), default=0)


def ended(process: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    """Waits until a process ends, and returns its exit status and its output. If it has not ended after `seconds`,
    kills it, and returns -SIGKILL and an error message instead.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out + err
    process.kill()
    process.communicate()
    return -signal.SIGKILL, f"no end after {seconds:.0f} s"


def wait_for_step(process: subprocess.Popen[str], step: int = 1) -> bool:
    """Reads the output of a training process until it reports step `step` or a later one, and returns True. Returns
    False if the process ends first.
    """
    assert process.stdout is not None
    return any((found := _STEP.search(line)) and int(found[1]) >= step for line in process.stdout)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = math.inf) -> bool:
    """Waits until `happened()` returns True, and returns True. Returns False if the process ends first, or after
    `seconds`.
    """
    until = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def _last(said: str) -> str:
    """Returns the last line of `said`, the output of a process, or a note if the process printed nothing."""
    return (said.strip().splitlines() or ["it printed nothing"])[-1]
