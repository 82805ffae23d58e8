"""Stores fingerprints of the data that a run is trained on in the file `DATA` of the run's folder, and compares the
current data with them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax

from jaxformer import digests, storage
from jaxformer.data.pipeline.loader import TRAIN
from jaxformer.data.sources.fingerprints import Fingerprint
from jaxformer.errors import InputError
from jaxformer.parallel import processes
from jaxformer.runs.folder import Claim, write_at_once

DATA = "data.json"
"""Name of the file in a run's folder that contains the data record."""
TOKENIZER = "tokenizer"
"""Key of the tokenizer's fingerprint in `DataRecord.sources`."""
ACCEPT = "--accept-changed-data"
"""Option of `jaxformer train` that accepts data that has changed since the run began."""


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """Fingerprints (digests of the content) of the data that a run is trained on, and the changes of this data that the
    user has accepted.
    """

    sources: dict[str, Fingerprint]
    """Fingerprint of each data source and of the tokenizer, keyed by name, such as `data.train`."""
    accepted: tuple[str, ...] = ()
    """A line for each change that was accepted since the run began."""
    changed_at: int = -1
    """Step at which the run last resumed with changes of its training data or tokenizer. -1 if it never did."""
    messages: tuple[str, ...] = ()
    """Lines to print after the comparison with the current data: which changes were accepted, or that the record was
    missing. Not stored in the file.
    """
    changes_batches: bool = False
    """Whether the training data or the tokenizer has changed since the last start, so that training reads other
    batches. Not stored in the file.
    """
    differs: bool = False
    """Whether this record differs from the one in the run's folder, and must be written. Not stored in the file."""

    def at(self, step: int) -> "DataRecord":
        """Returns the record for a run that resumes at `step`. If the training data or the tokenizer has changed since
        the last start, `changed_at` is set to `step`.
        """
        return dataclasses.replace(self, changed_at=step) if self.changes_batches else self

    def changes(self, now: Mapping[str, Fingerprint]) -> dict[str, str]:
        """Compares the recorded fingerprints with the current fingerprints `now`. Returns a dict that maps the name of
        each changed source to a description of the change.

        Only names that are in both are compared, because a source may belong to an evaluation that was added or
        removed.
        """
        common = [name for name in now if name in self.sources]
        return {name: change for name in common if (change := self.sources[name].change(now[name]))}


def read_record(folder: Path) -> DataRecord | None:
    """Reads the data record in a run's folder. Returns None if the folder has no record. Raises InputError if the
    record is damaged.
    """
    path = folder / DATA
    try:
        values = json.loads(digests.unseal(storage.read_bytes(str(path)).decode(errors="replace")))
    except FileNotFoundError:
        return None
    except digests.Mismatch as error:
        raise InputError(
            f"{path}: damaged: {error}; put a good copy back, or remove it to record the data again"
        ) from error
    sources = {name: Fingerprint(**value) for name, value in values["sources"].items()}
    return DataRecord(sources, tuple(values["accepted"]), values["changed_at"])


def write_record(folder: Path, record: DataRecord) -> None:
    """Writes the data record to the run's folder atomically. Does nothing if the record has not changed, or in a
    process other than process 0.
    """
    if jax.process_index() or not record.differs:
        return
    values = {"sources": {name: dataclasses.asdict(one) for name, one in record.sources.items()}}
    values |= {"accepted": record.accepted, "changed_at": record.changed_at}
    text = digests.seal(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    if storage.is_remote(folder):
        with storage.reported(folder, "cannot be written"):
            (folder / DATA).write_text(text, encoding="utf-8")
    else:
        write_at_once(folder / DATA, text)


def tokenizer_fingerprint(folder: Path) -> Fingerprint:
    """Returns the fingerprint of the tokenizer in a folder, made of the digests of its files."""
    files = digests.read(folder)
    return Fingerprint(len(files), {name: digest.value for name, digest in files.items()})


def compared(claim: Claim, now: dict[str, Fingerprint], accept: bool) -> DataRecord:
    """Compares the current data with the record in the run's folder, and returns the new record.

    Args:
      claim: write access to the run's folder.
      now: current fingerprints of the data sources and of the tokenizer, keyed by name.
      accept: whether to accept changes.

    Raises:
      InputError: If the data has changed and this is not accepted, or if two processes read different data.
    """
    first, *others = processes.gather(lambda: now)
    for number, other in enumerate(others, 1):
        for name, change in DataRecord(first).changes(other).items():
            raise InputError(f"{name} of process {number} is not that of process 0: it {change}")
    if not claim.is_run:
        return DataRecord(now, differs=True)
    before = read_record(claim.folder)
    if before is None:
        message = f"{claim.folder / DATA} is missing; the data is recorded as it is now"
        return DataRecord(now, messages=(message,), differs=True)
    changes = before.changes(now)
    lines = [f"{name} {change}" for name, change in changes.items()]
    if lines and not accept:
        raise InputError(
            f"--workdir {claim.folder}: {digests.summary(lines)} since the run began; put the data back, or train on "
            f"what there is now with {ACCEPT}"
        )
    return dataclasses.replace(
        before,
        sources=before.sources | now,
        accepted=(*before.accepted, *lines),
        messages=tuple(f"accepted: {line}" for line in lines),
        changes_batches=any(name.startswith((TRAIN, TOKENIZER)) for name in changes),
        differs=bool(lines) or not now.keys() <= before.sources.keys(),
    )
