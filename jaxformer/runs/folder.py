"""Exclusive write access to a run's folder, which must be new or already contain a run.

A folder is a run's folder once it contains the file `EXPERIMENT`. Until then, a starting run creates its files in the
subfolder `STARTING`. So the leftovers of a start that failed or was killed are recognised by name, and no other files
are ever removed.
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

from jaxformer import digests
from jaxformer.errors import InputError

EXPERIMENT, TOKENIZER, CHECKPOINTS, LOCK = "experiment.json", "tokenizer", "checkpoints", ".lock"
DAMAGED = "damaged"
"""Name of the subfolder to which a restarted run moves corrupted checkpoints and corrupted lines of metrics."""
STARTING = ".jaxformer-starting"
"""Name of the subfolder in which a starting run creates its tokenizer and experiment."""
WRITTEN = (
    *(EXPERIMENT, f"{EXPERIMENT}.tmp", TOKENIZER, CHECKPOINTS, LOCK, DAMAGED, STARTING, "tensorboard", "profile"),
    *("data.json", "data.json.tmp", "metrics.jsonl", "metrics.tmp", "skipped.jsonl", "skipped.tmp"),
    *("sessions.jsonl", "report.html", "report.html.tmp"),
)
"""Names of everything that a run writes to its folder."""
MOVED = "moved"
"""Name of a file in `STARTING` with the device and inode numbers of the tokenizer folder. They identify this folder
after it was moved to its final path, so that it can be removed if the start fails.
"""


class Claim:
    """Exclusive write access of this run to its folder. Process 0 holds a file lock, which prevents other runs from
    writing to the folder.
    """

    def __init__(self, folder: Path, lock: TextIO | None = None):
        """Opens the folder.

        Args:
          folder: the run's folder.
          lock: open, locked file `LOCK`, which only process 0 has. None in other processes.
        """
        self.folder, self._lock = folder, lock
        # While the folder is open, file systems do not reuse its inode number.
        self._opened = None if lock is None else os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.is_run = (folder / EXPERIMENT).exists()
        """Whether the folder contains a run, that is, the file `EXPERIMENT`."""
        self.started = False
        """Whether `start` has been called. If not, everything that this claim has created in the folder is removed when
        the claim ends.
        """

    @property
    def home(self) -> Path:
        """Path through which to write to the folder. In a run with one process on Linux, this is the open folder in
        `/proc/self/fd`, which stays valid when the folder is renamed.

        Background writes then never create a new folder at the old path.
        """
        by_number = Path(f"/proc/self/fd/{self._opened}")
        return by_number if jax.process_count() == 1 and by_number.is_dir() else self.folder

    @property
    def tokenizer(self) -> Path:
        """Path of the tokenizer folder, which may not exist yet. It is in the subfolder `STARTING` until the run has
        started.
        """
        return (self.folder if self.is_run else self.folder / STARTING) / TOKENIZER

    def check(self) -> None:
        """Raises InputError, in all processes, if the folder was renamed, replaced, removed or unmounted."""
        moved = self.moved()
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(moved))):
            moved = moved or "the run was moved"
        self._raise_if(moved)

    def check_here(self) -> None:
        """Raises InputError in this process if the folder was renamed, replaced, removed or unmounted. See `check` for
        all processes.
        """
        self._raise_if(self.moved())

    def _raise_if(self, moved: str) -> None:
        if moved:
            raise InputError(
                f"--workdir {self.folder}: {moved}; training has ended, and everything saved so far is kept"
            )

    def moved(self) -> str:
        """Describes how the folder was moved, removed or replaced. Empty if it was not."""
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
        """Writes the file `EXPERIMENT` atomically. A folder is a run's folder once it has this file.

        Args:
          experiment: text to write. If the file already has this text, it is not written again.
        """
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("experiment")  # Waits until all processes have read the new tokenizer.
        self.check()
        if jax.process_index() == 0:
            self._write(experiment)
        self.is_run = self.started = True

    def close(self) -> None:
        """Closes the descriptor of the claimed folder."""
        if self._opened is not None:
            os.close(self._opened)

    def _write(self, experiment: str) -> None:
        path, starting = self.folder / EXPERIMENT, self.folder / STARTING
        if self.is_run:
            if path.read_text(encoding="utf-8") != experiment:
                write_at_once(path, experiment)
            return
        if self.tokenizer.exists():
            digests.sync_all(self.tokenizer, os.listdir(self.tokenizer))
            (starting / MOVED).write_text(_identity(self.tokenizer), encoding="utf-8")
            os.rename(self.tokenizer, self.folder / TOKENIZER)
        (starting / EXPERIMENT).write_text(experiment, encoding="utf-8")
        digests.sync(starting / EXPERIMENT)
        os.replace(starting / EXPERIMENT, path)
        digests.sync(self.folder)
        shutil.rmtree(starting)


@contextlib.contextmanager
def claim(folder: Path, check: Callable[[], None]) -> Iterator[Claim]:
    """Context manager that claims exclusive write access to a run's folder. Creates the folder if it is missing.

    If the block ends before `Claim.start` is called, everything that the claim created is removed again.

    Args:
      folder: folder of an existing or a new run.
      check: function that raises InputError if the run in the folder must not be written to.

    Raises:
      InputError: If another process has claimed the folder, it cannot be written to, or it contains other files but not
        a run.
    """
    if jax.process_index():
        multihost_utils.sync_global_devices("folder")
        yield Claim(folder)  # Process 0 holds the lock for all processes.
        return
    _check_ours(folder)
    check_links(folder)
    check()  # Before anything is created, so that a refused folder stays unchanged.
    with contextlib.ExitStack() as closed, contextlib.ExitStack() as undone:
        _make(folder, undone)
        lock = closed.enter_context(_locked(folder, undone))
        _check_ours(folder)
        check_links(folder)
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
    """Replaces the content of a file atomically: a crash leaves either the old or the new text."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    digests.sync(temporary)
    os.replace(temporary, path)
    digests.sync(path.parent)


def _check_ours(folder: Path) -> None:
    """Raises InputError if the folder contains files but not a run. Files that a failed start has left are ignored."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"--workdir {folder}: cannot be written: {error.strerror}") from error
    check_names(folder, names, {LOCK, *(path.name for path in _left(folder))})


def check_links(folder: Path) -> None:
    """Raises InputError if a name that a run writes to is a link, because it would change files outside its folder."""
    for name in WRITTEN:
        if (folder / name).is_symlink():
            target = os.readlink(folder / name)
            raise InputError(
                f"--workdir {folder}: {name} is a link to {target}, and a run writes only to its own folder; "
                "replace it by what it leads to"
            )


def check_names(folder: Path, names: Collection[str], ours: Container[str]) -> None:
    """Raises InputError if a folder is not empty and not a run's folder.

    Args:
      folder: the folder.
      names: names of the files in it. It is a run's folder if `EXPERIMENT` is one of them.
      ours: names of files that a starting run may create, which are ignored.
    """
    foreign = [] if EXPERIMENT in names else [name for name in sorted(names) if name not in ours]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(
            f"--workdir {folder}: holds {foreign[0]}{more} but no run; expected a new folder or a run's folder"
        )


def _left(folder: Path) -> list[Path]:
    """Returns the files and folders that a failed start of a run has left. `STARTING` is the last of them, because the
    others can only be recognised as long as it exists.
    """
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
    """Removes the files and folders that a failed start of a run has left."""
    for path in _left(folder):
        path.rmdir() if path.name == CHECKPOINTS else shutil.rmtree(path)


def _make(folder: Path, undone: contextlib.ExitStack) -> None:
    """Creates the folder and its missing parents. When the stack `undone` closes, it removes those of the created
    folders that are empty.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            undone.callback(_remove_empty, path)
    except OSError as error:
        what = "is a link to nothing" if path.is_symlink() else "cannot be written"
        raise InputError(f"--workdir {folder}: {what}: {error.strerror}") from error


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Fails if another process has created files in it.
        folder.rmdir()


def _locked(folder: Path, undone: contextlib.ExitStack) -> TextIO:
    """Opens the lock file of the folder, creates it if it is missing, locks it, and returns it. A new lock file is
    removed when the stack `undone` closes.

    Raises:
      InputError: If another process has locked the file, or it cannot be created or locked.
    """
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
    except OSError as error:  # Some network file systems do not support locks.
        lock.close()
        if new:
            path.unlink(missing_ok=True)
        raise InputError(f"--workdir {folder}: cannot be locked: {error.strerror}") from error
    if not _is_same(path, lock.fileno()):  # Another process has just removed the file that this process locked.
        lock.close()
        raise busy
    if new:
        undone.callback(path.unlink, missing_ok=True)
    return lock


def _is_same(path: str | os.PathLike, opened: int) -> bool:
    """Returns whether `path` refers to the file or folder with the open descriptor `opened`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(opened))
    except OSError:
        return False


def _identity(path: Path) -> str:
    """Returns the device and inode numbers of a file or folder. Does not follow symbolic links."""
    status = os.lstat(path)
    return f"{status.st_dev} {status.st_ino}"
