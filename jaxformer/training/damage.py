"""Checkpoints that cannot be read, and reading the first one that can."""

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
"""Characters of a library's message about a damaged file, at most."""


class Damaged(InputError):
    """A part of a checkpoint is missing or cannot be read."""


def first_good(steps: Iterable[int], read: Callable[[int], Read]) -> tuple[int, Read, list[str]]:
    """The first step whose checkpoint is not damaged, what `read` returns for it, and a line for each damaged one.

    Args:
      steps: in the order in which to try them.
      read: reads the checkpoint of a step.

    Raises:
      Damaged: all of them are.
    """
    damaged: list[str] = []
    for step in steps:
        found, problem = [], ""
        try:
            found.append(read(step))
        except Damaged as error:
            problem = str(error)
        # Each process reads what its devices hold; a checkpoint that is damaged for one is skipped by all.
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.int32(bool(problem))).any():
            problem = problem or f"step {step}: damaged for another process"
        if not problem:
            return step, found[0], damaged
        damaged.append(problem)
    raise Damaged("; ".join(damaged))


def unless_damaged(folder: PurePath, read: Callable[[], Read]) -> Read:
    """Returns `read` of a checkpoint.

    Raises:
      Damaged: `read` failed, but not for a lack of memory or of permission.
      InputError: the checkpoint may not be read, or its bucket is out of reach; it is not taken for damaged, as
        training would move it aside.
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
    """Silences the errors of arrays that were read at the same time as one that failed, when they are collected."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        yield
    finally:
        sys.unraisablehook, log.disabled = hook, False
