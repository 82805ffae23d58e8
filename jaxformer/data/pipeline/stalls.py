"""Ends a run whose data does not arrive, and worker processes whose run has ended."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait

from jaxformer import ending

CHECK = 1.0
"""Maximum number of seconds between two looks at a wait."""
DUMP = getattr(signal, "SIGUSR1", None)
"""Signal at which a worker process prints what its threads are doing."""


class Watch:
    """Watches the waits for batches from a thread of its own. If one takes too long, prints what each thread and each
    worker process is doing, and ends the process.

    The main thread cannot do this, because it waits.
    """

    def __init__(self, seconds: float | None):
        """Watches no wait yet. `seconds` is the maximum length of a wait. None for no limit."""
        self._seconds, self._since, self._closed = seconds, None, threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager whose block is a wait."""
        if self._seconds is None:
            yield
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, args=(self._seconds,), name="stalls", daemon=True)
            self._thread.start()
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Ends the watching."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(min(CHECK, seconds / 2)):
            since = self._since
            if since is not None and time.monotonic() - since > seconds:
                print_stacks()
                stopped = describe_workers()
                for worker in multiprocessing.active_children():
                    worker.kill()  # A stopped one would not notice that its parent has ended.
                why = f"data.timeout={seconds:g}: no batch within this time{stopped}"
                ending.end(f"{why}; what each thread was doing is above", 1)


def print_stacks() -> None:
    """Prints what each thread of this process and of its workers is doing to standard error."""
    with contextlib.suppress(OSError, ValueError):  # Standard error may be closed, or not be a file.
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        for worker in multiprocessing.active_children():
            if worker.pid and DUMP and _state(worker.pid) not in ("T", ""):
                print(f"worker process {worker.pid}:", file=sys.stderr, flush=True)
                os.kill(worker.pid, DUMP)
                time.sleep(0.5)  # Each worker prints as a whole.


def describe_workers() -> str:
    """Names the worker processes that are stopped, such as "; worker process 1234 is stopped". Empty if there are
    none.
    """
    pids = [worker.pid for worker in multiprocessing.active_children() if worker.pid and _state(worker.pid) == "T"]
    return "".join(f"; worker process {pid} is stopped" for pid in pids)


def _state(pid: int) -> str:
    """Returns the letter of a process's state in Linux, such as T for stopped. Empty if it is not known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "?" if not os.path.isdir("/proc") else ""


def start_worker(index: int, count: int) -> None:
    """Prepares a worker process: it prints what its threads are doing at `DUMP`, and ends when its parent has ended.

    Args:
      index: index of the worker, which is not used.
      count: number of workers, which is not used.
    """
    del index, count
    if DUMP:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # Standard error may be closed.
            faulthandler.register(DUMP, all_threads=True)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
