"""Errors in what the user gave: one line that says what is wrong, where, and what would be right."""

import contextlib
from collections.abc import Iterator
from typing import Any

_LONGEST = 60
"""Characters of a value that a message shows."""


class InputError(ValueError):
    """A field, a file or a folder that the user gave is wrong.

    The message is one line. The command line prints it without a traceback and exits with status 2.
    """


class FieldError(InputError):
    """A field of a config value is wrong; the message is `data.task.length=24: expected at least 32`.

    A config value does not know where it is used, so it assumes the usual path of its class. The code that builds or
    reads it at another path replaces the assumed one by `under`.

    Args:
      path: dotted path of the field, such as `data.task.length`.
      problem: the rest of the message, such as `=24: expected at least 32`.
      owner: the part of `path` that leads to the config value that raises the error; None: all but the last name.
    """

    def __init__(self, path: str, problem: str, owner: str | None = None):
        super().__init__(path, problem, owner)  # All arguments, so that the error can be pickled.
        self.path, self.problem = path, problem
        self.owner = path.rpartition(".")[0] if owner is None else owner

    def __str__(self) -> str:
        return f"{self.path}{self.problem}"

    def under(self, path: str) -> "FieldError":
        """The error of a config value that is at `path`."""
        field = self.path.removeprefix(self.owner).removeprefix(".")
        return FieldError(f"{path}.{field}", self.problem, owner="")


@contextlib.contextmanager
def under(path: str) -> Iterator[None]:
    """Gives the `FieldError`s of a block the path of the config value that the block builds or uses, if it is known."""
    try:
        yield
    except FieldError as error:
        if not path:
            raise
        raise error.under(path) from error


def shown(value: Any) -> str:
    """The repr of a value on one line, cut to 60 characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
