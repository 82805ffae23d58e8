"""Drills of `jaxformer drill` that damage files or data. Each function damages copies of a small run in one way, reads
them, and returns an `Outcome`, which counts the faults that were detected.
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
    """Flips single bits in a checkpoint, one at a time, and checks that each damaged checkpoint is detected or still
    has the correct arrays. The flips are spread over the checkpoint: one random bit in each of `count` equal ranges of
    bytes.
    """
    draw = random.Random(0)

    def harmed(content: bytes, place: int) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        return bytes(changed)

    return _damage(scratch, "bit flips", _places(scratch, count, draw), harmed)


def truncations(scratch: Scratch, count: int) -> Outcome:
    """Truncates files of a checkpoint, one at a time, and checks that each damaged checkpoint is detected or still has
    the correct arrays. The cuts are spread over the checkpoint: at one random byte in each of `count` equal ranges of
    bytes.
    """
    return _damage(scratch, "truncations", _places(scratch, count, random.Random(1)), lambda content, at: content[:at])


def deletions(scratch: Scratch, count: int) -> Outcome:
    """Deletes each file of a checkpoint, one at a time, and checks that each damaged checkpoint is detected or still
    has the correct arrays. `count` is not used.
    """
    del count
    places = [(name, 0) for name in contents(_newest(scratch.undisturbed))]
    return _damage(scratch, "deleted files", places, None)


def foreign(scratch: Scratch, count: int) -> Outcome:
    """Adds an unknown file to each folder of a checkpoint, one at a time, and checks that each changed checkpoint is
    detected or still has the correct arrays. `count` is not used.
    """
    del count
    names = contents(_newest(scratch.undisturbed))
    folders = sorted({name.rpartition("/")[0] for name in names})
    return _damage(scratch, "foreign files", [(f"{home}/foreign".lstrip("/"), 0) for home in folders], lambda *_: b"?")


def _newest(folder: Path) -> Path:
    return folder / CHECKPOINTS / str(latest(folder))


def _places(scratch: Scratch, count: int, draw: random.Random) -> list[tuple[str, int]]:
    """Chooses random bytes that are spread over a checkpoint: divides its concatenated files into `count` equal ranges
    of bytes, and chooses one byte in each. Returns (file name, index of the byte in the file) of each.
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
    """Damages the newest checkpoint of a copy of the small run, reads the newest checkpoint that is not detected as
    damaged, and compares its arrays with those of the undamaged run. Repeats this for each fault, after undoing the
    previous one.

    Args:
      scratch: the small run.
      fault: name of the kind of fault.
      places: (file name, index of a byte in the file) of each fault.
      harm: function that takes the file's content and the index, and returns the damaged content. If None, the file is
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
    """Wrapper of a data source that changes it in one way, to check that the source's fingerprint changes.

    `how` is the change: `grown` adds a document, `shrunk` removes one, and `edited` changes the document with index
    `place`. With `edited` and a `place` of -1, nothing changes.
    """

    def __init__(self, documents: Sequence, how: str, place: int):
        self._documents, self._how, self._place = documents, how, place

    @property
    def contents(self) -> Callable[[], Iterator[tuple[str, Any]]] | None:
        """Function that yields (path, content) of each file of the source, including the change. None if the source
        does not consist of files.
        """
        whole = getattr(self._documents, "contents", None)
        return whole and functools.partial(self._altered, whole)

    def _altered(self, whole: Callable[[], Iterator[tuple[str, Any]]]) -> Iterator[tuple[str, Any]]:
        files = list(whole())
        for number, (path, content) in enumerate(files):
            if self._how == "edited" and self._place >= 0 and number == self._place % len(files):
                content = bytearray(bytes(content))
                content[self._place % len(content)] ^= 1
            yield path, content

    def __len__(self) -> int:
        return len(self._documents) + {"grown": 1, "shrunk": -1, "edited": 0}[self._how]

    def __getitem__(self, index: int) -> Any:
        if self._how == "edited" and index == self._place:
            return {"edited": True}
        return self._documents[min(index, len(self._documents) - 1)]


def changed_data(scratch: Scratch, count: int) -> Outcome:
    """Changes the training data, and checks that its fingerprint differs from the original one: adds a document,
    removes one, and edits a random document `count` times.
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
