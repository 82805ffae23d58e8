"""Notes on standard error, and errors that list several problems of an input."""

import multiprocessing
import sys
from collections.abc import Sequence

from jaxformer.errors import InputError

_SHOWN = 10
"""Maximum number of problems in one message."""

_printed: set[str] = set()


def note(text: str) -> None:
    """Prints a line to standard error, once per process. Worker processes print nothing."""
    if text not in _printed and multiprocessing.parent_process() is None:
        _printed.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def listed(names: Sequence[str]) -> str:
    """Joins the first ten names with commas and appends the number of remaining names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Problems:
    """Collects problems of an input. The error message lists the first ten and counts the others."""

    def __init__(self, advice: str = ""):
        """Initializes an empty list of problems. `advice` says what would be right; the message ends with it."""
        self.advice, self.first, self.count = advice, [], 0

    def add(self, problem: str) -> None:
        """Adds one problem, a phrase on one line."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def check(self, scope: str = "") -> None:
        """Raises InputError if a problem was added.

        `scope` names the checked part of the input if it was not checked as a whole.
        """
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{scope}"] if self.count > len(self.first) else []
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice])]))
