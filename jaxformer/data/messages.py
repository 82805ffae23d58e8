"""Notes on standard error, and error messages that list several problems of an input."""

import multiprocessing
import sys
from collections.abc import Sequence

from jaxformer.errors import InputError

_SHOWN = 10
"""Maximum number of problems listed in one error message."""

_printed: set[str] = set()


def note(text: str) -> None:
    """Prints a line to standard error, once per process. Worker processes print nothing."""
    if text not in _printed and multiprocessing.parent_process() is None:
        _printed.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def listed(names: Sequence[str]) -> str:
    """Joins the first ten names with commas. If there are more, appends their number."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Problems:
    """Collects the problems of an input, to report them in one error. The message lists the first ten and counts the
    others.
    """

    def __init__(self, advice: str = ""):
        """Initializes an empty list of problems. `advice` is the end of the error message, and says what would be
        right.
        """
        self.advice, self.first, self.count = advice, [], 0

    def add(self, problem: str) -> None:
        """Adds one problem, a phrase on one line."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def check(self, scope: str = "") -> None:
        """Raises InputError if a problem was added.

        If only a part of the input was checked, `scope` describes this part, such as " of 100,000 documents read". The
        message appends it to the number of further problems.
        """
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{scope}"] if self.count > len(self.first) else []
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice])]))
