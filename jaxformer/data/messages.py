"""Notes on standard error, and errors that list several problems of an input."""

import multiprocessing
import sys
from collections.abc import Sequence

from jaxformer.errors import InputError

_SHOWN = 10
"""Problems that a message lists."""

_printed: set[str] = set()


def note(text: str) -> None:
    """Prints a line on standard error, once in this process; worker processes print nothing."""
    if text not in _printed and multiprocessing.parent_process() is None:
        _printed.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def listed(names: Sequence[str]) -> str:
    """The first ten names with commas between them, and the number of the others."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Problems:
    """Problems of an input: a message lists the first ten and counts the others."""

    def __init__(self, advice: str = ""):
        """`advice`: what would be right; the message ends with it."""
        self.advice, self.first, self.count = advice, [], 0

    def add(self, problem: str) -> None:
        """Adds a problem, a phrase of one line."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def check(self, scope: str = "") -> None:
        """Raises InputError if there is a problem; `scope` names the part of the input that was checked, if not all."""
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{scope}"] if self.count > len(self.first) else []
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice])]))
