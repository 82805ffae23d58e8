"""Files of a run's logs: in the run's folder, or for a bucket in a local folder that is copied there."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxformer import storage
from jaxformer.runs.history import METRICS

EVERY = 10.0
"""Number of seconds between two copies of the logs to a bucket. A checkpoint also copies them."""


class LogFiles:
    """The files to which a run appends its logs.

    In a bucket, each file is one object, which is rewritten as a whole when the file has grown.
    """

    def __init__(self, folder: Path, moved: Callable[[], str]):
        """Creates `home`, which at first contains only the metrics so far.

        Args:
          folder: the run's folder.
          moved: function that returns why nothing may be written to the folder any more, or the empty string.
        """
        self.home = folder
        """Local folder of the files."""
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
        """Copies new content in the background if the last copy is long enough ago. A failed copy is repeated later."""
        if self.is_copied and time.monotonic() - self._last >= EVERY and self._is_idle():
            self._last = time.monotonic()
            self._copying: Future | None = self._thread.submit(self._copy)

    def flush(self) -> None:
        """Copies new content.

        Raises:
          InputError: If it cannot be written.
        """
        if self.is_copied:
            self._last = time.monotonic()
            with storage.reported(self._folder, "the logs cannot be written"):
                self._thread.submit(self._copy).result()

    def close(self) -> None:
        """Copies new content if possible, and removes the local files."""
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
