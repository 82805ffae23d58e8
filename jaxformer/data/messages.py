"""Functions that print notes to standard error, and that build error messages about several problems of an input."""

import contextlib
import contextvars
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence

from jaxformer.errors import InputError

_SHOWN = 10
"""Maximum number of problems or names that are listed in one message."""

_printed: set[str] = set()
_tolerated = [0]
_place: contextvars.ContextVar[Callable[[], str] | None] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def at(place: Callable[[], str]) -> Iterator[None]:
    """Context manager in whose block a record is read. `placed` adds its origin to notes. `place` returns the origin,
    such as a file and a line, and is called only if there is a note.
    """
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def placed(problem: str) -> str:
    """Adds the origin of the record that is being read (see `at`) before the description of a problem with it, unless
    the description contains it already.
    """
    place = _place.get()
    where = "" if place is None else place()
    return problem if where in problem else f"{where}: {problem}"


@contextlib.contextmanager
def tolerating(count: int) -> Iterator[None]:
    """Context manager in whose block up to `count` records of an input may be wrong: `Problems.check` prints a note
    about them instead of raising an error.
    """
    # Of the process, not of the thread: libraries that train tokenizers read documents in threads of their own.
    _tolerated.append(count)
    try:
        yield
    finally:
        _tolerated.pop()


def tolerated() -> int:
    """Returns the number of wrong records that are permitted (see `tolerating`)."""
    return _tolerated[-1]


class BadRecords:
    """Counts the records of the training data that cannot be used, and are skipped."""

    def __init__(self, most: int):
        """Counts none yet. `most` is the number of records that may be skipped."""
        self._most, self._indices = most, set[int]()

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def skip(self, index: int, error: InputError) -> None:
        """Counts a record and prints a note about it. Raises `error` if there are more than may be skipped."""
        if len(self._indices) >= self._most:
            if self._most:
                raise InputError(f"{error}; data.skip_bad_records={self._most}: it is one too many") from error
            raise error
        self._indices.add(index)
        note(f"{error}; skipped, {len(self._indices)} of at most {self._most}", in_workers=True)


def note(text: str, in_workers: bool = False) -> None:
    """Prints a line to standard error, unless this process has already printed the same line. Worker processes print
    nothing unless `in_workers` is True.
    """
    if text not in _printed and (in_workers or multiprocessing.parent_process() is None):
        _printed.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def listed(names: Sequence[str]) -> str:
    """Joins up to ten names with commas. If there are more, appends "and N more"."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Problems:
    """Collects the problems of an input, to report them in one error. The message lists the first ten and counts the
    others.
    """

    def __init__(self, advice: str = ""):
        """Initializes an empty list of problems. `advice` is appended to the error message, and states what input is
        expected.
        """
        self.advice, self.first, self.count = advice, [], 0

    def add(self, problem: str) -> None:
        """Adds one problem, described by a phrase without line breaks."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def check(self, scope: str = "") -> None:
        """Raises InputError if a problem was added. In a block of `tolerating`, prints a note if there are no more than
        may be skipped.

        Args:
          scope: text after the number of problems that are not listed, for example " of 100,000 documents read" if only
            a part of the input was checked.
        """
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{scope}"] if self.count > len(self.first) else []
        if self.count <= tolerated():
            note("; ".join([*self.first, *more, "skipped"]))
            return
        limit = f"{self.count:,} bad records, more than data.skip_bad_records={tolerated()}" if tolerated() else ""
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice, limit])]))
