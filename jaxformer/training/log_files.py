"""Where a run's logs are appended to: its folder, or for one in a bucket a local folder that is copied there."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxformer import storage
from jaxformer.runs.history import METRICS

EVERY = 10.0
"""Seconds between two copies of the logs to a bucket, which has whole objects only; checkpoints copy at once."""


class LogFiles:
    """The files that a run appends its logs to.

    In a bucket each file is one object, which is written again, whole, when there is more in it.
    """

    def __init__(self, folder: Path, moved: Callable[[], str]):
        """Makes `home`, where there is nothing yet but the metrics so far.

        Args:
          folder: the run's.
          moved: why nothing may be written to the folder any more, if so.
        """
        self.home = folder
        """A local folder for the files."""
        self.is_copied = storage.is_remote(folder)
        """Whether the files are copied to the run's folder."""
        self._folder, self._moved, self._sizes = folder, moved, dict[Path, int]()
        self._last, self._copying = -EVERY, None
        if not self.is_copied:
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxformer-logs-")
        self._thread = ThreadPoolExecutor(1, "logs")
        self.home = Path(self._temporary.name)
        with storage.reported(folder), contextlib.suppress(FileNotFoundError):
            (self.home / METRICS).write_bytes((folder / METRICS).read_bytes())

    def copy_soon(self) -> None:
        """Copies what is new in the background, if the last time is long enough ago; a failure is made up for later."""
        if self.is_copied and time.monotonic() - self._last >= EVERY and self._is_idle():
            self._last = time.monotonic()
            self._copying: Future | None = self._thread.submit(self._copy)

    def flush(self) -> None:
        """Copies what is new.

        Raises:
          InputError: it cannot be written.
        """
        if self.is_copied:
            self._last = time.monotonic()
            with storage.reported(self._folder, "the logs cannot be written"):
                self._thread.submit(self._copy).result()

    def close(self) -> None:
        """Copies what is new, if it can, and removes the local files."""
        if self.is_copied:
            try:
                self.flush()
            finally:
                self._thread.shutdown()
                self._temporary.cleanup()

    def _is_idle(self) -> bool:
        return self._copying is None or self._copying.done()

    def _copy(self) -> None:
        if self._moved():
            return  # `Claim.check` reports it.
        for file in sorted(self.home.rglob("*")):
            content = file.read_bytes() if file.is_file() else b""
            if file.is_file() and self._sizes.get(file) != len(content):
                (self._folder / file.relative_to(self.home)).write_bytes(content)
                self._sizes[file] = len(content)
