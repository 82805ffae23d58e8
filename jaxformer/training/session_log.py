"""Records the sessions of a run: what it is trained on, and what its time is spent on (see `runs.sessions`)."""

import contextlib
import platform
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax

import jaxformer
from jaxformer import digests, strict_json
from jaxformer.config import Experiment
from jaxformer.runs.sessions import COMPILATION, DATA, KINDS, SESSIONS, STARTING, STEPS
from jaxformer.training.state import TrainState, count, split_frozen
from jaxformer.training.utilization import memory_in_use

EVERY = 10.0
"""Minimum number of seconds between two lines about the progress of a session. A killed session loses at most the
record of this time.
"""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Packages whose versions are recorded, if they are installed."""
T = TypeVar("T")


class Stopwatch:
    """Measures how many seconds a session spends on each kind of work. Times are measured on the host: while it waits
    for a batch or saves, devices may still compute steps.
    """

    def __init__(self, began: float):
        """Starts measuring. `began` is the time at which the training was started (`time.monotonic`)."""
        self._began = began
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        """Seconds spent on each kind of work so far."""

    @property
    def total(self) -> float:
        """Seconds since the training was started."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Context manager that adds the time of its block to a kind of work."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - began

    def step(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager for a training step. The first step is counted as compilation."""
        return self.measure(STEPS if self.seconds[COMPILATION] else COMPILATION)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, and measures how long the training waits for each."""
        self.seconds[STARTING] = self.total
        source = iter(batches)
        while True:
            with self.measure(DATA):
                batch = next(source, source)
            if batch is source:
                return
            yield batch  # type: ignore[misc]  # The iterator itself marks the end.


class SessionLog:
    """Writes the lines of one session to `SESSIONS` in a run's folder."""

    def __init__(self, home: Path | None):
        """Opens the file. `home` is the folder to write to. If None, nothing is written, as in all processes except
        process 0.
        """
        self._file = None if home is None else (home / SESSIONS).open("a", encoding="utf-8", buffering=1)
        self._last = time.monotonic()

    def start(self, experiment: Experiment, state: TrainState, mesh: jax.sharding.Mesh) -> None:
        """Writes the line of the start of the session, at the step of `state`."""
        unit, in_row = experiment.data.task.unit
        trained, _ = split_frozen(experiment, state.params)
        self._write(
            "start",
            int(state.step),
            steps=experiment.steps,
            parameters=count(state.params),
            trained=count(trained),
            device=mesh.devices.flat[0].device_kind,
            devices=mesh.devices.size,
            processes=jax.process_count(),
            mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
            unit=unit,
            units_per_step=experiment.data.batch * in_row,
            versions=_versions(),
        )

    def progress(self, step: int, watch: Stopwatch) -> None:
        """Writes a line about the progress, unless the last one was written less than `EVERY` seconds ago."""
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._write("progress", step, **_spent(watch))

    def end(self, step: int, watch: Stopwatch, how: str) -> None:
        """Writes the last line of the session. `how` describes how it ended, such as `stopped by SIGTERM`."""
        self._write("end", step, **_spent(watch), how=how)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, event: str, step: int, **values: Any) -> None:
        if self._file is not None:
            line = {"event": event, "time": round(time.time(), 1), "step": step, **values}
            self._file.write(digests.seal_line(strict_json.dumps(line)) + "\n")


def _spent(watch: Stopwatch) -> dict[str, Any]:
    seconds = {kind: round(spent, 2) for kind, spent in watch.seconds.items()}
    return {"total": round(watch.total, 2), "seconds": seconds, "memory": memory_in_use()}


def _versions() -> dict[str, str]:
    found = {"jaxformer": jaxformer.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
