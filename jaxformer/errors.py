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


class Stopped(KeyboardInterrupt):
    """Raised in the main thread when a signal stops a training at a moment at which nothing would be lost.

    The message is one line. The command line prints it and exits with `status`.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class FieldError(InputError):
    """Error in a field of a config value (an instance of a frozen dataclass or Linen module). The message has the form
    `data.task.length=24: expected at least 32`.

    A config value, such as a task, has no reference to the experiment that contains it. When it refuses the value of a
    field, it reports the field under the path that config values of its class usually have, such as `data.task`. Code
    that uses the config value at another path corrects the message with `under`.

    Args:
      path: dotted path of the field, such as `data.task.length`.
      problem: the rest of the message, such as `=24: expected at least 32`.
      owner: path of the config value that raises the error, the first part of `path`, such as `data.task`. If None,
        `path` without its last name.
    """

    def __init__(self, path: str, problem: str, owner: str | None = None):
        super().__init__(path, problem, owner)  # Passes all arguments, so that the error can be pickled.
        self.path, self.problem = path, problem
        self.owner = path.rpartition(".")[0] if owner is None else owner

    def __str__(self) -> str:
        return f"{self.path}{self.problem}"

    def under(self, path: str) -> "FieldError":
        """Returns the same error for a config value that is at `path` in the experiment: replaces `owner`, the assumed
        path of the config value, by `path`.
        """
        field = self.path.removeprefix(self.owner).removeprefix(".")
        return FieldError(f"{path}.{field}", self.problem, owner="")


@contextlib.contextmanager
def under(path: str) -> Iterator[None]:
    """Context manager for code that creates the config value at the dotted path `path` of an experiment. If the block
    raises a `FieldError`, raises it again with the full path of the field. If `path` is empty, does not change the
    error.
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
