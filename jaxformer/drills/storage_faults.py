"""Drills of `jaxformer drill` with storage that fails while a small run writes to it, and a reader beside a run."""

import random
import time
import warnings
from pathlib import Path

from jaxformer import storage
from jaxformer.drills import failing_storage
from jaxformer.drills.failing_storage import FAULTS
from jaxformer.drills.processes import EXIT_TIMEOUT, difference, ended, finish, logged, wait_for_step
from jaxformer.drills.scratch import EVERY, STEPS, Outcome, Scratch, latest
from jaxformer.errors import InputError
from jaxformer.runs import run as runs

MOST_SECONDS = 30.0
"""Maximum number of seconds from a fault of the storage to the end of the run."""


def storage_faults(scratch: Scratch, count: int) -> Outcome:
    """Makes the storage fail under small training runs: a full disk, input/output errors and a read-only file system,
    each at up to `count` random moments. Checks that the run ends in time with a one-line error, and that it resumes
    when the storage works again. Then trains a run on slow storage.

    Tries nothing on a machine without a C compiler, or in a bucket.
    """
    fault, built = "failing storage", failing_storage.library(scratch.local)
    if built is None or storage.is_remote(scratch.home):
        return Outcome(fault, 0, 0, 0, 0, [])
    draw, seconds, problems, lost, tried = random.Random(0), [], [], 0, 0
    for name in [*FAULTS] * min(count, 5):
        folder, tried = scratch.new(f"storage-{name}"), tried + 1
        took, problem = failing(scratch, folder, name, built, draw.randrange(EVERY, STEPS // 2))
        seconds.append(took)
        problems += filter(None, [problem])
        lost = max(lost, logged(folder) - latest(folder))
        problems += filter(None, [finish(scratch, folder)])
    slow = scratch.new("storage-slow")
    (scratch.local / "slow").write_text("slow", encoding="utf-8")
    status, said = ended(
        scratch.start(slow, failing_storage.environment(built, scratch.home, scratch.local / "slow")),
        scratch.seconds + 2 * EXIT_TIMEOUT,
    )
    problems += filter(None, [f"{slow}: status {status}: {said[-300:]}" if status else difference(scratch, slow)])
    return Outcome(fault, tried + 1, tried + 1 - len(problems), 0, lost, seconds, problems)


def failing(scratch: Scratch, folder: Path, name: str, built: Path, step: int) -> tuple[float, str]:
    """Trains a small run whose storage fails from a step. Returns the number of seconds from the fault to the end, and
    an error message, which is empty if the run ended as expected.

    Args:
      scratch: the small run.
      folder: new folder of the run.
      name: the fault, a key of `FAULTS`.
      built: library that makes writes fail (`failing_storage.library`).
      step: step from which the storage fails.
    """
    control = scratch.local / f"{folder.name}.fault"
    process = scratch.start(folder, failing_storage.environment(built, scratch.home, control))
    if not wait_for_step(process, step):
        return 0.0, f"{folder}: {name}: the run ended before: {ended(process, EXIT_TIMEOUT)}"
    began = time.monotonic()
    control.write_text(name, encoding="utf-8")
    status, said = ended(process, EXIT_TIMEOUT)
    seconds = time.monotonic() - began
    control.unlink()
    return seconds, _wrong_end(f"{folder}: {name}", status, said, FAULTS[name], seconds)


def _wrong_end(fault: str, status: int, said: str, message: str, seconds: float) -> str:
    """Describes how the end of a run with failing storage differs from the expected one. Empty if it does not.

    Args:
      fault: text at the start of the description.
      status: exit status of the run.
      said: output of the run.
      message: message of the operating system that the run has to report.
      seconds: number of seconds from the fault to the end.
    """
    errors = [line for line in said.splitlines() if line.startswith("jaxformer: ")]
    if status != 2 or len(errors) != 1 or f"cannot be written: {message}" not in errors[0] or "Traceback" in said:
        return f"{fault}: status {status}, {len(said.splitlines())} lines of output, {errors or said[-300:]}"
    return "" if seconds <= MOST_SECONDS else f"{fault}: ended after {seconds:.0f} s"


def readers(scratch: Scratch, count: int) -> Outcome:
    """Opens a run `count` times while it trains, saves a checkpoint at each step and removes the one before. Checks
    that each attempt reads a checkpoint without an error or a warning.
    """
    folder, seconds, problems, opened = scratch.new("read"), [], [], 0
    process = scratch.start(folder, changes={"checkpoint.every": 1, "checkpoint.keep": 1, "steps": 100_000})
    try:
        if not wait_for_step(process, 2 * EVERY):
            return Outcome("reader", count, 0, 0, 0, [], [f"the run ended before: {ended(process, EXIT_TIMEOUT)}"])
        for _ in range(count):
            began = time.monotonic()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    runs.open_run(folder)
                opened += 1
            except (InputError, UserWarning, OSError) as error:
                problems.append(f"{folder}: {error}")
            seconds.append(time.monotonic() - began)
    finally:
        process.kill()
        process.communicate()
    return Outcome("reader beside a run", count, opened, 0, 0, seconds, problems)
