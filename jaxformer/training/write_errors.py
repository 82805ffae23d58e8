"""Reports errors of the storage of a run on one line: a full disk, a failing or read-only one."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.errors import InputError

_OF_STORAGE = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EIO",
        "EROFS",
        "EFBIG",
        "ESTALE",
        "ENODEV",
        "ENXIO",
        "EACCES",
        "EPERM",
        "ENOTCONN",
    )
    if hasattr(errno, name)
}
_OF_TENSORSTORE = re.compile(r"\[OS error (\d+):")
"""Matches the number of an operating system's error in the message of a TensorStore error."""


@contextlib.contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Context manager that converts an error of writing to a run's folder to an InputError. Libraries wrap such errors
    in others, so their causes are searched.

    Orbax saves in several threads, which report the same error many times, also after this context has ended. So after
    such an error, their reports are never printed again.

    Args:
      folder: the run's folder.
    """
    restored = contextlib.ExitStack()
    for name in ("absl", "asyncio"):
        log = logging.getLogger(name)
        log.addFilter(_is_printed)
        restored.callback(log.removeFilter, _is_printed)
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = report  # TensorStore calls it if a write ends after Orbax has given up.
    restored.callback(setattr, sys, "unraisablehook", hook)
    try:
        yield
    except Exception as error:
        reason = "" if isinstance(error, InputError) else _reason(error, folder)
        if not reason:
            restored.close()
            raise
        raise InputError(
            f"--workdir {folder}: cannot be written: {reason}; training has ended, and everything saved so far is kept"
        ) from error
    except BaseException:
        restored.close()
        raise
    restored.close()


def _is_printed(record: logging.LogRecord) -> bool:
    """Returns whether to print a log record: not if it reports an error of saving, which `write_errors` reports."""
    of_saving = "orbax" in record.pathname or (record.name == "asyncio" and "never retrieved" in record.getMessage())
    return record.levelno < logging.ERROR or not of_saving


def _reason(error: BaseException, folder: Path) -> str:
    """Returns the message of the operating system for an error of the storage. Empty if it is another error."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _OF_STORAGE and _is_below(one.filename, folder):
            return (one.strerror or str(one)).lower()
        if not isinstance(one, OSError) and (found := _OF_TENSORSTORE.search(str(one))):
            return os.strerror(int(found[1])).lower()
        one = one.__cause__ or one.__context__
    return ""


def _is_below(name: object, folder: Path) -> bool:
    """Returns whether the file name of an error is in the run's folder, or is not known."""
    if not isinstance(name, str | os.PathLike):
        return True
    path = os.path.realpath(name)
    return path.startswith((os.path.realpath(folder), "/proc/"))
