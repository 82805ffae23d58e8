"""Damaged checkpoints: recognises them, and finds the first checkpoint that can be read."""

import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer import fields, storage
from jaxformer.errors import InputError

Read = TypeVar("Read")
MOST_SAID = 300
"""Maximum number of characters that are shown of a library's error message about a damaged file."""


class Damaged(InputError):
    """Error for a checkpoint that is incomplete or cannot be read."""


def first_good(steps: Iterable[int], read: Callable[[int], Read]) -> tuple[int, Read, list[str]]:
    """Reads the first checkpoint that is not damaged.

    Args:
      steps: steps of the checkpoints, in the order in which to try them.
      read: function that reads the checkpoint of a step.

    Returns:
      The step, the result of `read`, and a line for each damaged checkpoint before it.

    Raises:
      Damaged: If all checkpoints are damaged.
    """
    damaged: list[str] = []
    for step in steps:
        found, problem = [], ""
        try:
            found.append(read(step))
        except Damaged as error:
            problem = str(error)
        # Each process reads only its shards. A checkpoint that is damaged for one process is skipped by all.
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.int32(bool(problem))).any():
            problem = problem or f"step {step}: damaged for another process"
        if not problem:
            return step, found[0], damaged
        damaged.append(problem)
    raise Damaged("; ".join(damaged))


def unless_damaged(folder: PurePath, read: Callable[[], Read]) -> Read:
    """Calls `read`, which reads a checkpoint in `folder`, and returns its result. If it fails in a way that suggests
    that the files are damaged, raises `Damaged`.

    Raises:
      Damaged: If `read` failed for another reason than a lack of memory or of permission.
      InputError: If permission is missing, or the bucket cannot be reached. This is not `Damaged`, because training
        would move the checkpoint away.
    """
    with _errors_of_others_dropped():
        try:
            return read()
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            cause = _first_cause(error)
            # TensorStore raises ValueError with the name of its status.
            forbidden = isinstance(cause, PermissionError) or "PERMISSION_DENIED" in str(cause)
            forbidden = forbidden or (storage.is_remote(folder) and storage.is_of_client(cause))
            said = _message(cause)
            del cause
        gc.collect()
    if forbidden:
        raise InputError(f"{folder}: cannot be read: {said}")
    raise Damaged(f"{folder}: damaged: {said}")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _message(error: BaseException) -> str:
    said = fields.one_line(error) or type(error).__name__
    return said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]} …"


@contextlib.contextmanager
def _errors_of_others_dropped() -> Iterator[None]:
    """Context manager for reading several arrays at the same time. If reading one fails, silences the errors of the
    other arrays that Python would report later, when it frees them.
    """
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        yield
    finally:
        sys.unraisablehook, log.disabled = hook, False
