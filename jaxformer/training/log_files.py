"""Log files of a run. If the run's folder is in a bucket, they are written locally and copied there regularly."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxformer import storage
from jaxformer.runs.history import METRICS, SKIPPED
from jaxformer.runs.sessions import SESSIONS

EVERY = 10.0
"""Minimum number of seconds between two copies of the log files to a bucket."""


class LogFiles:
    """Local folder for the log files of a run, which are also copied to the run's folder if it is in a bucket.

    An object in a bucket cannot be appended to, so a file that has grown is copied as a whole.
    """

    def __init__(self, folder: Path, moved: Callable[[], str]):
        """Prepares the local folder. If the run's folder is in a bucket, downloads the metrics of earlier steps to it.

        Args:
          folder: the run's folder.
          moved: function that returns the reason why this process may no longer write to the folder, or an empty
            string.
        """
        self.home = folder
        """Folder to write log files to: the run's folder, or a temporary local folder if the run's folder is in a
        bucket.
        """
        self.is_copied = storage.is_remote(folder)
        """Whether the log files are copied from `home` to the run's folder, which is then in a bucket."""
        self._folder, self._moved, self._sizes = folder, moved, dict[Path, int]()
        self._last, self._copying = -EVERY, None
        if not self.is_copied:
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxformer-logs-")
        self._thread = ThreadPoolExecutor(1, "logs")
        self.home = Path(self._temporary.name)
        for name in (METRICS, SKIPPED, SESSIONS):
            with storage.reported(folder), contextlib.suppress(FileNotFoundError):
                (self.home / name).write_bytes((folder / name).read_bytes())

    def copy_soon(self) -> None:
        """Starts a copy to the bucket in the background if the last copy was at least `EVERY` seconds ago. Does nothing
        if the run's folder is local.

        Errors are ignored, because the next copy includes the same content.
        """
        if self.is_copied and time.monotonic() - self._last >= EVERY and self._is_idle():
            self._last = time.monotonic()
            self._copying: Future | None = self._thread.submit(self._copy)

    def flush(self) -> None:
        """Copies new content to the bucket and waits until it is written. Does nothing if the run's folder is local.

        Raises:
          InputError: If the bucket cannot be written to.
        """
        if self.is_copied:
            self._last = time.monotonic()
            with storage.reported(self._folder, "the logs cannot be written"):
                self._thread.submit(self._copy).result()

    def close(self) -> None:
        """Copies new content to the bucket, and removes the local files. Does nothing if the run's folder is local."""
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
            return  # `Claim.check` reports the error.
        for file in sorted(self.home.rglob("*")):
            content = file.read_bytes() if file.is_file() else b""
            if file.is_file() and self._sizes.get(file) != len(content):
                (self._folder / file.relative_to(self.home)).write_bytes(content)
                self._sizes[file] = len(content)
