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

from jaxformer import fields
from jaxformer.errors import InputError

Read = TypeVar("Read")
MOST_SAID = 300
"""Characters of what a library says of a damaged file."""


class Damaged(InputError):
    """A checkpoint of which a part is missing or cannot be read."""


def first_good(steps: Iterable[int], read: Callable[[int], Read]) -> tuple[int, Read, list[str]]:
    """The first of some steps of which the checkpoint is not damaged, what `read` gives for it, and what is damaged.

    Args:
      steps: in the order in which to try them.
      read: reads the checkpoint of a step.

    Raises:
      Damaged: all of them are.
    """
    damaged: list[str] = []
    for step in steps:
        try:
            found, problem = read(step), ""
        except Damaged as error:
            found, problem = None, str(error)
        # Each process reads what its devices hold: what is damaged for one of them is so for all.
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.int32(bool(problem))).any():
            problem = problem or f"step {step}: damaged for another process"
        if not problem:
            return step, found, damaged
        damaged.append(problem)
    raise Damaged("; ".join(damaged))


def unless_damaged(folder: PurePath, read: Callable[[], Read]) -> Read:
    """What `read` gives of a checkpoint; raises `Damaged` for whatever it raises, but for a lack of memory."""
    with _errors_of_others_dropped():
        try:
            return read()
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            said = _first_cause(error)
        gc.collect()
    raise Damaged(f"{folder}: damaged: {said}")


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
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
