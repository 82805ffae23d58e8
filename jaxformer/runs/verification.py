"""Compares the files in a run's folder with the digests that were stored when they were written, for `jaxformer
verify`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxformer import digests, storage
from jaxformer.errors import InputError
from jaxformer.progress import phase
from jaxformer.runs.data_record import DATA, read_record
from jaxformer.runs.files import check_tokenizer_files
from jaxformer.runs.folder import CHECKPOINTS, EXPERIMENT, TOKENIZER
from jaxformer.runs.history import METRICS, SKIPPED, read_history
from jaxformer.runs.sessions import SESSIONS
from jaxformer.training.checkpoint_digests import check_digests
from jaxformer.training.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Part:
    """The result of checking one part of a run's folder: a file, the tokenizer folder or a checkpoint."""

    name: str
    """Name of the file or folder."""
    problem: str
    """Description of the damage. Empty if there is none."""
    content: str = ""
    """Description of an undamaged part, such as its size."""

    def __str__(self) -> str:
        return f"{self.name:20} {self.problem or f'good, {self.content}'}"


def verify(folder: Path) -> Iterator[Part]:
    """Checks the experiment, the data record, the tokenizer, the metrics and all checkpoints of a run. Yields the
    result for each as soon as it has been checked.

    Raises:
      InputError: If the folder is not a run's, or a file cannot be read.
    """
    if storage.is_remote(folder):
        storage.check_bucket(folder)
    if not (folder / EXPERIMENT).exists():
        raise InputError(f"{folder}: not a run's folder: it has no {EXPERIMENT}")
    yield _part(folder, EXPERIMENT, lambda: _check_experiment(folder / EXPERIMENT))
    if (folder / DATA).exists():
        yield _part(folder, DATA, lambda: _check_record(folder))
    if (folder / TOKENIZER).exists():
        yield _part(folder, TOKENIZER, lambda: _check_tokenizer(folder / TOKENIZER))
    for name in (METRICS, SKIPPED, SESSIONS):
        if (folder / name).exists():
            yield _part(folder, name, lambda name=name: _check_lines(folder / name))
    for step in Checkpoints(folder / CHECKPOINTS).steps if (folder / CHECKPOINTS).is_dir() else ():
        name = f"{CHECKPOINTS}/{step}"
        with phase(f"reading {name}"):
            yield _part(folder, name, lambda name=name: _check_checkpoint(folder / name))


def _part(folder: Path, name: str, check: Callable[[], str]) -> Part:
    """Runs a check of one file or folder in a run's folder, and returns the result.

    Args:
      folder: the run's folder.
      name: name of the file or folder.
      check: function that returns a description of an undamaged part, or raises InputError with the path and the
        damage.
    """
    try:
        return Part(name, "", check())
    except InputError as error:
        return Part(name, str(error).removeprefix(f"{folder / name}: "))


def _check_experiment(path: Path) -> str:
    text = storage.read_bytes(str(path)).decode(errors="replace")
    if not digests.is_sealed(text):
        return "edited by hand: it has no digest"
    try:
        return f"{len(digests.unseal(text)):,} bytes"
    except digests.Mismatch as error:
        raise InputError(f"{path}: damaged: {error}") from error


def _check_record(folder: Path) -> str:
    record = read_record(folder)
    return f"{len(record.sources) if record else 0} sources"


def _check_tokenizer(folder: Path) -> str:
    check_tokenizer_files(folder)
    return f"{len(digests.read(folder))} files"


def _check_lines(path: Path) -> str:
    lines, damaged = read_history(path)
    if damaged:
        raise InputError(digests.summary(damaged))
    return f"{len(lines):,} lines"


def _check_checkpoint(folder: Path) -> str:
    check_digests(folder)
    files = digests.read(folder)
    return f"{len(files)} files, {sum(digest.size for digest in files.values()):,} bytes"
