"""Profiles of a few training steps, in the format that XProf reads."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from jaxformer import storage

FOLDER = "profile"
"""Name of the subfolder of a run that contains its profiles."""
SKIPPED = 3
"""Number of steps to train before tracing begins. The first step includes compilation."""
TRACED = 5
"""Number of steps to trace."""


class Profile(contextlib.AbstractContextManager):
    """Traces some steps of a training into the run's folder. Only process 0 traces, and only its own devices.

    Use it as a context manager around the training. A trace that is running when the block ends is written too.
    """

    def __init__(self, folder: Path | None, start: int, steps: int):
        """Chooses the steps to trace: `TRACED` steps after the first `SKIPPED` steps, or only the last step if the run
        has fewer.

        Args:
          folder: the run's folder, which may be in a bucket. None to trace nothing.
          start: number of steps done so far.
          steps: number of steps of the run.
        """
        self._folder = folder if jax.process_index() == 0 else None
        self.first = min(start + SKIPPED, steps - 1)
        """Number of steps that are done when the trace begins."""
        self.last = min(self.first + TRACED, steps)
        """Number of steps that are done when the trace ends."""
        self._written: Path | None = None

    def __enter__(self) -> Self:
        return self

    def before(self, step: int, waiting: Any) -> None:
        """Starts the trace if this is the first step to trace.

        Args:
          step: number of steps that are done.
          waiting: arrays of earlier steps. The trace begins when they have been computed.
        """
        if self._folder is None or step != self.first:
            return
        jax.block_until_ready(waiting)
        self._written = self._folder / FOLDER
        if storage.is_remote(self._folder):
            self._written = Path(tempfile.mkdtemp(prefix="jaxformer-profile-"))
        jax.profiler.start_trace(str(self._written))

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """Context manager that marks its block as one training step in the trace. XProf uses these marks to compute the
        time of each step.
        """
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, waiting: Any) -> str:
        """Ends the trace if this was the last step to trace.

        Args:
          step: number of steps that are done.
          waiting: arrays of the steps. The trace ends when they have been computed.

        Returns:
          A line that names the traced steps and a command to view the trace. Empty if no trace has ended.
        """
        if self._written is None or step != self.last:
            return ""
        jax.block_until_ready(waiting)
        return self._end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written is not None:
            self._end()

    def _end(self) -> str:
        """Ends the trace and writes it to the run's folder. Returns a line that names the traced steps and a command to
        view the trace.
        """
        jax.profiler.stop_trace()
        written, self._written = self._written, None
        assert self._folder is not None and written is not None
        target = self._folder / FOLDER
        if storage.is_remote(self._folder):
            storage.upload(written, target)
            shutil.rmtree(written)
        return f"steps {self.first + 1:,} to {self.last:,} are traced · xprof --logdir {target}"
