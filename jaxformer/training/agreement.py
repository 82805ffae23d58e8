"""Checks before the first step that all processes train the same experiment."""

import hashlib
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxformer import classes, fields
from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.parallel import processes
from jaxformer.parallel.meeting import differing
from jaxformer.runs.folder import EXPERIMENT, STARTING

LATE = 10
"""Maximum number of seconds to wait until a folder that process 0 has created is visible on this host."""


def check_same(experiment: Experiment, workdir: Path) -> None:
    """Checks that all processes train the same experiment. Raises InputError, in all processes, if a process has
    another experiment, run folder or user-defined class than process 0.
    """
    if jax.process_count() == 1:
        return
    first, *others = processes.gather(lambda: facts(experiment, workdir))
    for number, other in enumerate(others, 1):
        if problem := differing(0, first, number, other):
            raise InputError(problem)


def check_shared(folder: Path) -> None:
    """Raises InputError, in all processes, if a process cannot see the run's folder that process 0 has created.

    Without a shared file system, each host would save only its own part of a checkpoint.
    """
    if jax.process_count() == 1 or "://" in str(folder):
        return
    blind = [str(number) for number, sees in enumerate(processes.gather(lambda: _sees(folder))) if not sees]
    if blind:
        numbers = ", ".join(blind[:10])
        raise InputError(
            f"--workdir {folder}: process {numbers} does not see it; expected a folder that all hosts share"
        )


def _sees(folder: Path) -> bool:
    """Returns whether this process can see a run in the folder, which may still be starting. Waits up to `LATE`
    seconds, because a network file system may be slow.
    """
    for _ in range(LATE):
        if (folder / STARTING).exists() or (folder / EXPERIMENT).exists():
            return True
        time.sleep(1)
    return False


def facts(experiment: Experiment, workdir: Path) -> dict[str, str]:
    """Returns the values that must be the same in all processes, as texts keyed by name.

    They are the fields of the experiment, the run's folder, and digests of the user modules that define classes of the
    experiment.
    """
    code = {}
    for cls in fields.classes_in(experiment).values():
        if not cls.__module__.startswith(f"{classes.OWN}."):
            path = Path(inspect.getfile(cls))
            code[f"code of {cls.__module__}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return {"--workdir": str(workdir), **dict(_leaves(fields.encode(experiment), "")), **code}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        yield f"{path} (length)", str(len(value))
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}.{index}")
    else:
        yield path, repr(value)
