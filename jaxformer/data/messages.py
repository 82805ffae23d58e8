"""Functions that print notes to standard error, and that build error messages about several problems of an input."""

import multiprocessing
import sys
from collections.abc import Sequence

from jaxformer.errors import InputError

_SHOWN = 10
"""Maximum number of problems or names that are listed in one message."""

_printed: set[str] = set()


def note(text: str) -> None:
    """Prints a line to standard error, unless this process has already printed the same line. Worker processes print
    nothing.
    """
    if text not in _printed and multiprocessing.parent_process() is None:
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
        """Raises InputError if a problem was added.

        Args:
          scope: text after the number of problems that are not listed, for example " of 100,000 documents read" if only
            a part of the input was checked.
        """
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{scope}"] if self.count > len(self.first) else []
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice])]))
