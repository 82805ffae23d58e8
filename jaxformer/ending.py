"""Ends this process at once, from any thread, with a one-line error. If the run has several processes, all of them end.

A normal exit runs cleanup code and waits for threads. It is not possible if the main thread is inside a library that
does not return, or waits for something that never happens.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

STOPPED = 75
"""Exit status of a training that a signal has stopped, and that the same command continues: `EX_TEMPFAIL` of
`sysexits.h`.
"""

_announce: list[Callable[[str, int], None]] = []


def announce_with(announce: Callable[[str, int], None] | None) -> None:
    """Sets the function by which `end` reports the error in a run with several processes: it takes the message and the
    exit status, and notifies the other processes. None if there is only one process.
    """
    _announce[:] = [] if announce is None else [announce]


def end(why: str, status: int) -> NoReturn:
    """Prints an error and ends this process, and all other processes of the run, without cleanup.

    Args:
      why: the error message, one line.
      status: exit status of the process.
    """
    for announce in _announce:
        announce(why, status)
    restore = "\x1b[?25h" if sys.stderr.isatty() else ""  # A progress bar may have hidden the cursor.
    with contextlib.suppress(OSError, ValueError):  # Standard error may be closed.
        print(f"{restore}jaxformer: {why}", file=sys.stderr, flush=True)
    os._exit(status)
