"""The drills of `jaxformer drill`. Each function damages copies of a small run in one way, reads them, and returns an
`Outcome` with the number of faults that were detected.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.sources.fingerprints import fingerprints
from jaxformer.drills.scratch import EVERY, STEPS, Outcome, Scratch, contents, differing, latest, write
from jaxformer.runs.folder import CHECKPOINTS


def flips(scratch: Scratch, count: int) -> Outcome:
    """Drill of flipped bits. Divides the bytes of a checkpoint into `count` equal ranges, and tries one random bit flip
    in each range, one at a time.
    """
    draw = random.Random(0)

    def harmed(content: bytes, place: int) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        return bytes(changed)

    return _damage(scratch, "bit flips", _places(scratch, count, draw), harmed)


def truncations(scratch: Scratch, count: int) -> Outcome:
    """Drill of truncated files. Divides the bytes of a checkpoint into `count` equal ranges, chooses a random byte in
    each range, and truncates the file that contains it at this byte, one file at a time.
    """
    return _damage(scratch, "truncations", _places(scratch, count, random.Random(1)), lambda content, at: content[:at])


def deletions(scratch: Scratch, count: int) -> Outcome:
    """Drill of missing files. Deletes each file of a checkpoint, one at a time. `count` is not used."""
    del count
    places = [(name, 0) for name in contents(_newest(scratch.undisturbed))]
    return _damage(scratch, "deleted files", places, None)


def foreign(scratch: Scratch, count: int) -> Outcome:
    """Drill of additional files. Adds a file to each folder of a checkpoint, one at a time. `count` is not used."""
    del count
    names = contents(_newest(scratch.undisturbed))
    folders = sorted({name.rpartition("/")[0] for name in names})
    return _damage(scratch, "foreign files", [(f"{home}/foreign".lstrip("/"), 0) for home in folders], lambda *_: b"?")


def _newest(folder: Path) -> Path:
    return folder / CHECKPOINTS / str(latest(folder))


def _places(scratch: Scratch, count: int, draw: random.Random) -> list[tuple[str, int]]:
    """Divides the concatenated files of a checkpoint into `count` equal ranges of bytes, and chooses a random byte in
    each. Returns the file and the index of the byte in the file.
    """
    sizes = {name: len(content) for name, content in contents(_newest(scratch.undisturbed)).items() if content}
    names, ends = list(sizes), np.cumsum(list(sizes.values()))
    places = []
    for number in range(count):
        low, high = (int(ends[-1]) * edge // count for edge in (number, number + 1))
        byte = draw.randrange(low, max(high, low + 1))
        index = int(np.searchsorted(ends, byte, side="right"))
        places.append((names[index], byte - int(ends[index - 1] if index else 0)))
    return places


def _damage(
    scratch: Scratch,
    fault: str,
    places: Sequence[tuple[str, int]],
    harm: Callable[[bytes, int], bytes] | None,
) -> Outcome:
    """Damages the newest checkpoint of a copy of the run, reads the newest checkpoint that counts as good, and compares
    its arrays with the expected ones. Repeats this for each fault, after undoing the previous one.

    Args:
      scratch: the small run.
      fault: name of the kind of fault.
      places: the file and the index of the byte of each fault.
      harm: function of the content of the file and the index that returns the damaged content. If None, the file is
        deleted.
    """
    folder = scratch.copy("damaged")
    newest, before = _newest(folder), scratch.state(folder, STEPS - EVERY)
    good, seconds, problems, detected, lost = contents(newest), [], [], 0, 0
    for name, place in places:
        if harm is None:
            (newest / name).unlink()
        else:
            write(newest / name, harm(good.get(name, b""), place))
        began = time.monotonic()
        step, state = scratch.good(folder)
        seconds.append(time.monotonic() - began)
        wrong = differing(f"{fault} at byte {place} of {name}", state, scratch.expected if step == STEPS else before)
        detected, lost = detected + (step < STEPS and not wrong), max(lost, STEPS - step)
        problems += filter(None, [wrong])
        if name in good:
            write(newest / name, good[name])
        else:
            (newest / name).unlink()
    harmless = len(places) - detected - len(problems)
    return Outcome(fault, len(places), detected, harmless, lost, seconds, problems)


class _Altered(Sequence):
    """An opened source with a change, to check that its fingerprint changes.

    `how` is `grown` or `shrunk` for one more or one less document, or `edited` for other content of the document at the
    index `place`. An index of -1 means no change.
    """

    def __init__(self, documents: Sequence, how: str, place: int):
        self._documents, self._how, self._place = documents, how, place

    @property
    def contents(self) -> Callable[[], Iterator[tuple[str, Any]]] | None:
        """Function that yields (path, content) of each file of the source, with the change. None if the source has no
        files.
        """
        whole = getattr(self._documents, "contents", None)
        return whole and functools.partial(self._altered, whole)

    def _altered(self, whole: Callable[[], Iterator[tuple[str, Any]]]) -> Iterator[tuple[str, Any]]:
        files = list(whole())
        for number, (path, content) in enumerate(files):
            if self._how == "edited" and self._place >= 0 and number == self._place % len(files):
                content = bytearray(content)
                content[self._place % len(content)] ^= 1
            yield path, content

    def __len__(self) -> int:
        return len(self._documents) + {"grown": 1, "shrunk": -1, "edited": 0}[self._how]

    def __getitem__(self, index: int) -> Any:
        if self._how == "edited" and index == self._place:
            return {"edited": True}
        return self._documents[min(index, len(self._documents) - 1)]


def changed_data(scratch: Scratch, count: int) -> Outcome:
    """Drill of changed data. Compares the fingerprint of the training data with the fingerprints of the data with one
    more, one less, or one edited document. Edits are tried `count` times.
    """
    draw, seconds, missed, tried = random.Random(0), [], 0, 0
    documents = scratch.experiment.data.train.open()
    plain = _Altered(documents, "edited", -1)
    [before] = fingerprints(plain, "data.train").values()
    for how, times in (("grown", 1), ("shrunk", 1), ("edited", count)):
        for _ in range(times):
            place, tried, began = draw.randrange(len(documents)), tried + 1, time.monotonic()
            [now] = fingerprints(_Altered(documents, how, place), "data.train").values()
            seconds.append(time.monotonic() - began)
            missed += not before.change(now)
    # A sample of a large source misses some edits, as documented: a count, not a failure.
    return Outcome("changed data", tried, tried - missed, 0, 0, seconds)
