"""Errors in user input. Each message is one line that says what is wrong, where, and what would be right."""

import contextlib
from collections.abc import Iterator
from typing import Any

_LONGEST = 60
"""Maximum number of characters of a value in an error message."""


class InputError(ValueError):
    """Error in a field, a file or a folder that the user gave.

    The message is one line. The command line prints it without a traceback and exits with status 2.
    """


class FieldError(InputError):
    """Error in a field of a config value. The message has the form `data.task.length=24: expected at least 32`.

    A config value has no reference to the experiment that contains it, so it assumes the usual path of its class. Code
    that builds or reads it at another path replaces the assumed path with `under`.

    Args:
      path: dotted path of the field, such as `data.task.length`.
      problem: the rest of the message, such as `=24: expected at least 32`.
      owner: path of the config value that raises the error, the first part of `path`. If None, `path` without its last
        name.
    """

    def __init__(self, path: str, problem: str, owner: str | None = None):
        super().__init__(path, problem, owner)  # Passes all arguments, so that the error can be pickled.
        self.path, self.problem = path, problem
        self.owner = path.rpartition(".")[0] if owner is None else owner

    def __str__(self) -> str:
        return f"{self.path}{self.problem}"

    def under(self, path: str) -> "FieldError":
        """Returns the same error for a config value at `path`: replaces the assumed path of the value in the path of
        the field.
        """
        field = self.path.removeprefix(self.owner).removeprefix(".")
        return FieldError(f"{path}.{field}", self.problem, owner="")


@contextlib.contextmanager
def under(path: str) -> Iterator[None]:
    """Context manager that raises the `FieldError`s of its block again with the full path of the field in the
    experiment. `path` is the dotted path of the config value that raises them. If it is empty, they are raised
    unchanged.
    """
    try:
        yield
    except FieldError as error:
        if not path:
            raise
        raise error.under(path) from error


def shown(value: Any) -> str:
    """Returns the repr of a value on one line, truncated to 60 characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
