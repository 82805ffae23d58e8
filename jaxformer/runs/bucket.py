"""Exclusive write access to a run's folder in a bucket; `folder` has the same for local folders.

A bucket has no folders, and objects cannot be moved. Until a folder belongs to a run, its tokenizer is below
`STARTING`. Then the tokenizer is copied to its place, and `EXPERIMENT`, which makes the folder a run's, is written
last.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxformer import storage
from jaxformer.runs.folder import EXPERIMENT, STARTING, TOKENIZER, Claim, check_names
from jaxformer.runs.lease import Lease

LEASE = ".lease"


class BucketClaim(Claim):
    """A run's folder in a bucket that this process, or process 0 of several, may write to."""

    def __init__(self, folder: Path, lease: Lease | None = None):
        """Opens the folder.

        Args:
          folder: the run's folder.
          lease: the lease that allows writing, in process 0; None in other processes.
        """
        super().__init__(folder)
        self._lease = lease

    def moved(self) -> str:
        return "" if self._lease is None else self._lease.problem()

    def _write(self, experiment: str) -> None:
        path, starting = self.folder / EXPERIMENT, self.folder / STARTING
        with storage.reported(self.folder, "cannot be written"):
            if self.is_run:
                if path.read_text(encoding="utf-8") != experiment:
                    path.write_text(experiment, encoding="utf-8")
                return
            for file in _files(self.tokenizer):
                (self.folder / TOKENIZER / file.name).write_bytes(file.read_bytes())
            path.write_text(experiment, encoding="utf-8")
            for file in _files(starting / TOKENIZER):
                file.unlink()


@contextlib.contextmanager
def claim_bucket(folder: Path, check: Callable[[], None]) -> Iterator[Claim]:
    """Claims write access to a run's folder in a bucket. Same arguments and errors as `folder.claim`."""
    if jax.process_index():
        multihost_utils.sync_global_devices("folder")
        yield BucketClaim(folder)  # The first process has the right for all.
        return
    storage.check_bucket(folder)
    _check_ours(folder)
    check()  # Before anything is made: what is refused stays as it is.
    with contextlib.ExitStack() as undone:
        lease = Lease(folder / LEASE)
        undone.callback(lease.release, remove=lease.is_new)
        _check_ours(folder)
        check()
        claimed = BucketClaim(folder, lease)
        if not claimed.is_run:
            _clear(folder)
            undone.callback(_clear, folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("folder")
        try:
            yield claimed
        finally:
            if claimed.started or claimed.moved():
                undone.pop_all()
                lease.release()


def _check_ours(folder: Path) -> None:
    """Raises InputError if the folder has objects and is not a run's. Leftovers of a start do not count."""
    with storage.reported(folder, "cannot be listed"):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        ours = {LEASE, STARTING} | ({TOKENIZER} if STARTING in names and _left(folder / TOKENIZER) else set())
    check_names(folder, names, ours)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _left(tokenizer: Path) -> list[Path]:
    """Returns the objects of a tokenizer that a start has copied to its place; empty if any other object is there."""
    kept = {file.name: file for file in _files(tokenizer.parent / STARTING / TOKENIZER)}
    found = _files(tokenizer)
    ours = all(file.name in kept and file.read_bytes() == kept[file.name].read_bytes() for file in found)
    return found if ours else []


def _clear(folder: Path) -> None:
    """Removes the leftovers of a start."""
    with storage.reported(folder, "cannot be written"):
        for file in (*_left(folder / TOKENIZER), *_files(folder / STARTING / TOKENIZER)):
            file.unlink(missing_ok=True)
