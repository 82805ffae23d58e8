"""What is said of data: notes for a person, and errors that list several problems at once."""

import multiprocessing
import sys

from jaxformer.errors import InputError

_SHOWN = 10
"""Problems that a message lists."""

_said: set[str] = set()


def note(text: str) -> None:
    """Prints a line on standard error, once in this process; worker processes print nothing."""
    if text not in _said and multiprocessing.parent_process() is None:
        _said.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Names with commas between them: the first ten, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Problems:
    """Problems of an input: a message lists the first ten and counts the others."""

    def __init__(self, advice: str = ""):
        """`advice`: what would be right, said once after all problems."""
        self.advice, self.first, self.count = advice, [], 0

    def add(self, problem: str) -> None:
        """Adds a problem, a phrase of one line."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def check(self, counted: str = "") -> None:
        """Raises InputError if there is a problem; `counted` says in what, if not in all of the input."""
        if not self.count:
            return
        more = [f"and {self.count - len(self.first):,} more{counted}"] if self.count > len(self.first) else []
        raise InputError("; ".join([*self.first, *more, *filter(None, [self.advice])]))
