"""A lease that allows only one writer in a bucket: an object that its owner renews as long as it runs."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from jaxformer import conditional, storage
from jaxformer.errors import InputError
from jaxformer.progress import phase

SECONDS = 60.0
"""Number of seconds after which a lease expires if it is not renewed. It is renewed four times as often."""


class Lease:
    """Exclusive write access below a path, until it is released or not renewed for `SECONDS`.

    The lease is an object that is written only if it still has the version that was last seen. Its age is measured by
    the clock of the server.
    """

    def __init__(self, path: Path):
        """Takes the lease at `path`. A lease that its owner no longer renews is taken over.

        Raises:
          InputError: If the owner still renews the lease, or the object cannot be read or written.
        """
        self._path, self._owner, self._count = path, uuid.uuid4().hex, 0
        self._lock, self._closed, self._lost = threading.Lock(), threading.Event(), ""
        self._began = _now()
        with storage.reported(path, "cannot be written"):
            self._version, self.is_new = self._take()
        threading.Thread(target=self._renew_repeatedly, name="lease", daemon=True).start()

    def _take(self) -> tuple[str, bool]:
        """Takes the object. Returns its new version, and whether it was new."""
        seen = conditional.read(self._path)
        while True:
            if seen is not None and (left := _seconds_left(seen)) > 0:
                with phase(f"waiting up to {left:.0f} s: the last writer's lease has not run out"):
                    seen = self._after(seen)
            self._began = _now()
            try:
                return conditional.write(self._path, self._content(), seen and seen.version), seen is None
            except conditional.Changed:
                before, seen = seen, conditional.read(self._path)
                if seen is not None and _said(seen).get("owner") == self._owner:
                    return seen.version, before is None  # An answer was lost on its way.

    def _after(self, first: conditional.Stored) -> conditional.Stored | None:
        """Waits until the lease has ended, and returns its object. Raises InputError if it is renewed."""
        seen: conditional.Stored | None = first
        while seen is not None and _seconds_left(seen) > 0:
            time.sleep(_length(first) / 30)
            seen = conditional.read(self._path)
            if seen is not None and seen.version != first.version and not _said(seen).get("released"):
                raise InputError(
                    f"--workdir {self._path.parent}: another process is writing this run ({_named(seen)}); "
                    "use another folder"
                )
        return seen

    def problem(self) -> str:
        """Returns why this process may not write any more; empty if it may.

        Raises:
          InputError: If this cannot be determined because the bucket cannot be reached.
        """
        if not self._lost and _now() - self._began > SECONDS:
            with storage.reported(self._path, "the lease cannot be renewed"):
                self._renew()
        return self._lost

    def release(self, remove: bool = False) -> None:
        """Releases the lease. If that fails, the next writer only has to wait.

        Args:
          remove: whether to remove the object.
        """
        self._closed.set()
        with self._lock, contextlib.suppress(Exception):
            if self._lost:
                return
            self._version = conditional.write(self._path, self._content(released=True), self._version)
            if remove:
                conditional.remove(self._path, self._version)

    def _renew_repeatedly(self) -> None:
        while not self._closed.wait(SECONDS / 4):
            with contextlib.suppress(Exception):  # `problem` tries again, and reports it.
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._lost or self._closed.is_set():
                return
            began = _now()
            try:
                self._version = conditional.write(self._path, self._content(), self._version)
            except conditional.Changed:
                seen = conditional.read(self._path)
                if seen is None or _said(seen).get("owner") != self._owner:
                    whose = "was removed" if seen is None else f"has been taken over by {_named(seen)}"
                    self._lost = f"the run's lease {whose}, after {began - self._began:.0f} s without a renewal"
                    return
                self._version = seen.version  # An answer was lost on its way.
            self._began = began

    def _content(self, released: bool = False) -> bytes:
        self._count += 1  # Two of the same content would have the same ETag.
        said = {"owner": self._owner, "host": socket.gethostname(), "process": os.getpid(), "renewals": self._count}
        return json.dumps({**said, "seconds": SECONDS, "released": released}).encode()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # It includes the time for which a machine is suspended.


def _said(seen: conditional.Stored) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(said := json.loads(seen.content), dict):
            return said
    return {}


def _named(seen: conditional.Stored) -> str:
    said = _said(seen)
    return f"process {said.get('process', '?')} on {said.get('host', '?')}"


def _length(seen: conditional.Stored) -> float:
    length = _said(seen).get("seconds")
    return float(length) if isinstance(length, int | float) else SECONDS


def _seconds_left(seen: conditional.Stored) -> float:
    """Returns the seconds until a lease expires. One second is added, because the server counts whole seconds."""
    return -1.0 if _said(seen).get("released") else _length(seen) + 1 - seen.age
