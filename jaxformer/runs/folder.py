"""The right to write to a run's folder: for one process at a time, in a folder that is new or a run's.

Until a folder is a run's, everything is made in a folder of this library's own name in it, `STARTING`. So what a start
that failed or was killed has left is known by name, and nothing else is ever removed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Container, Iterator
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.errors import InputError

EXPERIMENT, TOKENIZER, CHECKPOINTS, LOCK = "experiment.json", "tokenizer", "checkpoints", ".lock"
DAMAGED = "damaged"
"""Where checkpoints are kept that could not be read when the run was started again."""
STARTING = ".jaxformer-starting"
"""In a folder that is about to become a run's: what becomes its tokenizer and its experiment."""
MOVED = "moved"
"""In `STARTING`: which folder is the tokenizer that has been moved out of it."""


class Claim:
    """A folder that this process, or the first of several, writes a run to."""

    def __init__(self, folder: Path, lock: TextIO | None = None):
        """Opens the folder, where `lock` is given: the folder's locked file, in the first process."""
        self.folder, self._lock = folder, lock
        # An open folder keeps its inode's number on every file system.
        self._opened = None if lock is None else os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.is_run = (folder / EXPERIMENT).exists()
        """Whether there is an experiment in it."""
        self.started = False
        """Whether this process has written its experiment, after which nothing is removed any more."""

    @property
    def home(self) -> Path:
        """The folder, where possible by a name that follows it when it is renamed.

        What is written in the background then never makes a folder at the old place.
        """
        by_number = Path(f"/proc/self/fd/{self._opened}")
        return by_number if jax.process_count() == 1 and by_number.is_dir() else self.folder

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer is, or is to be made."""
        return (self.folder if self.is_run else self.folder / STARTING) / TOKENIZER

    def check(self) -> None:
        """Raises InputError, in all processes, where the folder was renamed, replaced, removed or unmounted."""
        moved = self.moved()
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(moved))):
            moved = moved or "the run was moved"
        self._raise_if(moved)

    def check_here(self) -> None:
        """As `check`, in this process alone."""
        self._raise_if(self.moved())

    def _raise_if(self, moved: str) -> None:
        if moved:
            raise InputError(f"--workdir {self.folder}: {moved}; training has ended, and all that is saved is kept")

    def moved(self) -> str:
        """The problem with the folder that this process knows of; empty if it is still there."""
        if self._lock is None or self._opened is None:
            return ""
        if not _is_same(self.folder, self._opened):
            with contextlib.suppress(OSError):
                now = os.readlink(f"/proc/self/fd/{self._opened}")
                if _is_same(now, self._opened):
                    return f"the run was moved to {now}"
            return "the run was moved, removed or unmounted"
        return "" if _is_same(self.folder / LOCK, self._lock.fileno()) else f"{LOCK} there was removed or replaced"

    def start(self, experiment: str) -> None:
        """Makes the folder a run's, at once or not at all, or replaces the experiment of a run where it is another.

        Args:
          experiment: what is to be in `EXPERIMENT`.
        """
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("experiment")  # All have read the tokenizer where it was made.
        self.check()
        if jax.process_index() == 0:
            self._write(experiment)
        self.is_run = self.started = True

    def close(self) -> None:
        """Closes the folder."""
        if self._opened is not None:
            os.close(self._opened)

    def _write(self, experiment: str) -> None:
        path, starting = self.folder / EXPERIMENT, self.folder / STARTING
        if self.is_run:
            if path.read_text(encoding="utf-8") != experiment:
                write_at_once(path, experiment)
            return
        if self.tokenizer.exists():
            (starting / MOVED).write_text(_identity(self.tokenizer), encoding="utf-8")
            os.rename(self.tokenizer, self.folder / TOKENIZER)
        (starting / EXPERIMENT).write_text(experiment, encoding="utf-8")
        os.replace(starting / EXPERIMENT, path)
        shutil.rmtree(starting)


@contextlib.contextmanager
def claim(folder: Path, check: Callable[[], None]) -> Iterator[Claim]:
    """The right to write to a run's folder, made where it is missing; the kernel takes it back from a dead process.

    What was made here is removed again when an error ends the block before `Claim.start`.

    Args:
      folder: where the run is or is to be.
      check: raises InputError where a run that is there must not be written to.

    Raises:
      InputError: another process writes there, the folder cannot be written, or holds something else than a run.
    """
    if jax.process_index():
        multihost_utils.sync_global_devices("folder")
        yield Claim(folder)  # The first process has the right for all.
        return
    _check_ours(folder)
    check()  # Before anything is made: what is refused stays as it is.
    with contextlib.ExitStack() as closed, contextlib.ExitStack() as undone:
        _make(folder, undone)
        lock = closed.enter_context(_locked(folder, undone))
        _check_ours(folder)
        check()
        claimed = closed.enter_context(contextlib.closing(Claim(folder, lock)))
        if not claimed.is_run:
            _clear(folder)
            (folder / STARTING).mkdir()
            undone.callback(_clear, folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("folder")
        try:
            yield claimed
        finally:
            if claimed.started or claimed.moved():
                undone.pop_all()


def write_at_once(path: Path, text: str) -> None:
    """Replaces a file by one with this text, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _check_ours(folder: Path) -> None:
    """Raises InputError if the folder is not empty and not a run's; leftovers of a start are not counted."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"--workdir {folder}: cannot be written: {error.strerror}") from error
    check_names(folder, names, {LOCK, *(path.name for path in _left(folder))})


def check_names(folder: Path, names: Collection[str], ours: Container[str]) -> None:
    """Raises InputError if a folder has other names in it than `ours`, and is not a run's."""
    foreign = [] if EXPERIMENT in names else [name for name in sorted(names) if name not in ours]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(f"--workdir {folder}: holds {foreign[0]}{more} but no run; expected a new or a run's folder")


def _left(folder: Path) -> list[Path]:
    """Leftovers of a start in a folder that did not become a run's; `STARTING`, which identifies them, comes last."""
    starting, checkpoints, tokenizer = (folder / name for name in (STARTING, CHECKPOINTS, TOKENIZER))
    if starting.is_symlink() or not starting.is_dir():
        return []
    left = [starting]
    if not checkpoints.is_symlink() and checkpoints.is_dir() and not any(checkpoints.iterdir()):
        left.insert(0, checkpoints)
    with contextlib.suppress(OSError):
        if (starting / MOVED).read_text(encoding="utf-8") == _identity(tokenizer):
            left.insert(0, tokenizer)
    return left


def _clear(folder: Path) -> None:
    """Removes what a start has left."""
    for path in _left(folder):
        path.rmdir() if path.name == CHECKPOINTS else shutil.rmtree(path)


def _make(folder: Path, undone: contextlib.ExitStack) -> None:
    """Makes the folder and those above it that are missing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            undone.callback(_remove_empty, path)
    except OSError as error:
        what = "is a link to nothing" if path.is_symlink() else "cannot be written"
        raise InputError(f"--workdir {folder}: {what}: {error.strerror}") from error


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Somebody else may have put something there.
        folder.rmdir()


def _locked(folder: Path, undone: contextlib.ExitStack) -> TextIO:
    """The folder's lock, opened, made where it is missing, and locked."""
    path = folder / LOCK
    busy = InputError(f"--workdir {folder}: another process is writing this run; use another folder")
    try:
        new = not path.exists()
        lock = path.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--workdir {folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise busy from error
    except OSError as error:  # Some network file systems cannot.
        lock.close()
        if new:
            path.unlink(missing_ok=True)
        raise InputError(f"--workdir {folder}: cannot be locked: {error.strerror}") from error
    if not _is_same(path, lock.fileno()):  # Its process has just removed it.
        lock.close()
        raise busy
    if new:
        undone.callback(path.unlink, missing_ok=True)
    return lock


def _is_same(path: str | os.PathLike, opened: int) -> bool:
    """Whether an open file or folder is the one at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(opened))
    except OSError:
        return False


def _identity(path: Path) -> str:
    """Device and inode of a file or folder, itself and not where it links to."""
    status = os.lstat(path)
    return f"{status.st_dev} {status.st_ino}"
