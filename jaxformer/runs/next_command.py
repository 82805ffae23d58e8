"""Suggests a command to run after training, with an example from the run's data."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxformer import fields
from jaxformer.classes import foreign_packages
from jaxformer.errors import InputError

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

TRIED = 20
"""Maximum number of examples to try until one of them can be converted to arguments of `jaxformer predict`."""


def next_command(run: "Run") -> str:
    """Returns a shell command for predicting with the run. If the run cannot predict, returns a command that trains
    another run initialised from its parameters.
    """
    words, folder = example_of(run), shlex.quote(str(run.folder))
    allowed = [f"--allow {package}" for package in foreign_packages(fields.classes_in(run.experiment))]
    if not words:
        return " ".join([program(), "train CONFIG.py --init", folder, *allowed])
    return " ".join([program(), "predict", folder, *allowed, *map(quoted, words)])


def example_of(run: "Run") -> tuple[str, ...]:
    """Converts the first usable example of the held-out data, or else of the training data, to arguments of
    `jaxformer predict`. Empty if none of the first `TRIED` examples is usable.
    """
    data = run.experiment.data
    documents = (data.validation or data.train).open()
    for index in range(min(TRIED, len(documents))):
        with contextlib.suppress(InputError):
            if words := data.task.requests(documents[index], run.folder):
                return words
    return ()


def program() -> str:
    """Returns the shell command that starts jaxformer in this environment."""
    found, home = shutil.which("jaxformer"), Path(sys.executable).parent
    if found and Path(found).parent.samefile(home):
        return "jaxformer"
    own = home / "jaxformer"
    start = [str(own)] if own.exists() else [sys.executable, "-m", "jaxformer"]
    start[0] = min(start[0], os.path.relpath(start[0]), key=len)
    return shlex.join(start)


def quoted(text: str) -> str:
    """Quotes a text as a shell word. Tabs use the `$'...'` form of bash and zsh."""
    if "\t" in text:
        inner = text.replace("\\", "\\\\").replace("'", "\\'").replace("\t", "\\t")
        return f"$'{inner}'"
    plain = not re.search(r'["$`\\!]', text)
    return f'"{text}"' if plain and shlex.quote(text) != text else shlex.quote(text)
