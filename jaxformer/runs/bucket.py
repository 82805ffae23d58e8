"""Exclusive write access to a run's folder in a bucket. The module `folder` does the same for local folders.

Objects in a bucket cannot be moved. So a new run first writes its tokenizer to the subfolder `STARTING`, and later
copies it to `TOKENIZER`. It writes the object `EXPERIMENT` last, because a folder is a run's folder once it contains
this object.
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
    """Write access of this run to a folder in a bucket. Process 0 holds a lease, which prevents other runs from writing
    to the folder.
    """

    def __init__(self, folder: Path, lease: Lease | None = None):
        """Opens the folder.

        Args:
          folder: the run's folder.
          lease: lease of the folder, which only process 0 has. None in other processes.
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
    """Context manager that claims exclusive write access to a run's folder in a bucket. Same arguments and errors as
    `folder.claim`.
    """
    if jax.process_index():
        multihost_utils.sync_global_devices("folder")
        yield BucketClaim(folder)  # Process 0 holds the lease for all processes.
        return
    storage.check_bucket(folder)
    _check_ours(folder)
    check()  # Before anything is written, so that a rejected folder stays unchanged.
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
    """Raises InputError if the folder contains objects but not a run. Ignores objects that a failed start of a run has
    left.
    """
    with storage.reported(folder, "cannot be listed"):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        ours = {LEASE, STARTING} | ({TOKENIZER} if STARTING in names and _left(folder / TOKENIZER) else set())
    check_names(folder, names, ours)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _left(tokenizer: Path) -> list[Path]:
    """Returns the files that a failed start of a run has copied from the subfolder `STARTING` to `tokenizer`. They may
    be deleted. Empty if the folder contains any other file, which must be kept.
    """
    kept = {file.name: file for file in _files(tokenizer.parent / STARTING / TOKENIZER)}
    found = _files(tokenizer)
    ours = all(file.name in kept and file.read_bytes() == kept[file.name].read_bytes() for file in found)
    return found if ours else []


def _clear(folder: Path) -> None:
    """Removes objects that a failed start of a run has left in the folder."""
    with storage.reported(folder, "cannot be written"):
        for file in (*_left(folder / TOKENIZER), *_files(folder / STARTING / TOKENIZER)):
            file.unlink(missing_ok=True)
