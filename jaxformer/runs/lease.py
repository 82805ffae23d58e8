"""Lease of a folder in a bucket: ensures that only one run writes to the folder, similar to a lock file.

The lease is an object in the bucket, which its owner (a process) rewrites regularly as long as the owner runs.
"""

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
"""Number of seconds after which a lease expires if its owner does not renew it. The owner renews it every quarter of
this time.
"""


class Lease:
    """Exclusive write access to the folder that contains `path`.

    The lease ends when it is released, or when its owner has not renewed it for `SECONDS`. It is stored as an object at
    `path` and updated by compare-and-swap: a write succeeds only if the version of the object has not changed since
    this process last read or wrote it. Expiry uses the clock of the storage server.
    """

    def __init__(self, path: Path):
        """Acquires the lease. If another process holds it, waits for it to expire.

        Args:
          path: path of the object that stores the lease.

        Raises:
          InputError: If the other process renews the lease meanwhile, or the object cannot be read or written.
        """
        self._path, self._owner, self._count = path, uuid.uuid4().hex, 0
        self._lock, self._closed, self._lost = threading.Lock(), threading.Event(), ""
        self._began = _now()
        with storage.reported(path, "cannot be written"):
            self._version, self.is_new = self._take()
        threading.Thread(target=self._renew_repeatedly, name="lease", daemon=True).start()

    def _take(self) -> tuple[str, bool]:
        """Acquires the lease. Returns the new version of its object, and whether the object did not exist before."""
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
                    return seen.version, before is None  # The write succeeded, but its response was lost.

    def _after(self, first: conditional.Stored) -> conditional.Stored | None:
        """Waits until the lease of another process ends, by release or expiry.

        Args:
          first: object of the lease as first read.

        Returns:
          Object of the lease as last read. None if the other process removed it.

        Raises:
          InputError: If the other process renews the lease.
        """
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
        """Returns the reason why this process has lost the lease, or an empty string if it still holds the lease.

        Raises:
          InputError: If the lease has expired and cannot be renewed because the bucket cannot be reached.
        """
        if not self._lost and _now() - self._began > SECONDS:
            with storage.reported(self._path, "the lease cannot be renewed"):
                self._renew()
        return self._lost

    def release(self, remove: bool = False) -> None:
        """Releases the lease. Errors are ignored, because the lease expires in any case.

        Args:
          remove: whether to delete the lease's object from the bucket. If False, it stays, marked as released.
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
            with contextlib.suppress(Exception):  # `problem` tries again, and reports the error.
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
                self._version = seen.version  # The write succeeded, but its response was lost.
            self._began = began

    def _content(self, released: bool = False) -> bytes:
        self._count += 1  # The content must change with each renewal, because S3 computes the ETag from it.
        said = {"owner": self._owner, "host": socket.gethostname(), "process": os.getpid(), "renewals": self._count}
        return json.dumps({**said, "seconds": SECONDS, "released": released}).encode()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # Unlike CLOCK_MONOTONIC, includes time in suspend.


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
    """Returns the number of seconds until a lease expires, plus one, because servers round times to seconds. Negative
    if the lease has been released.
    """
    return -1.0 if _said(seen).get("released") else _length(seen) + 1 - seen.age
