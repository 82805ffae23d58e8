"""The faults of the drills. Each function harms runs of a `Scratch` at several moments and returns an `Outcome`."""

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
    """Flips one bit in each of equal ranges over all bytes of a checkpoint."""
    draw = random.Random(0)

    def harmed(content: bytes, place: int) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        return bytes(changed)

    return _damage(scratch, "bit flips", _places(scratch, count, draw), harmed)


def truncations(scratch: Scratch, count: int) -> Outcome:
    """Cuts the file off at one byte of each of equal ranges over all bytes of a checkpoint."""
    return _damage(scratch, "truncations", _places(scratch, count, random.Random(1)), lambda content, at: content[:at])


def deletions(scratch: Scratch, count: int) -> Outcome:
    """Deletes each file of a checkpoint."""
    del count
    places = [(name, 0) for name in contents(_newest(scratch.undisturbed))]
    return _damage(scratch, "deleted files", places, None)


def foreign(scratch: Scratch, count: int) -> Outcome:
    """Adds a file to each folder of a checkpoint."""
    del count
    names = contents(_newest(scratch.undisturbed))
    folders = sorted({name.rpartition("/")[0] for name in names})
    return _damage(scratch, "foreign files", [(f"{home}/foreign".lstrip("/"), 0) for home in folders], lambda *_: b"?")


def _newest(folder: Path) -> Path:
    return folder / CHECKPOINTS / str(latest(folder))


def _places(scratch: Scratch, count: int, draw: random.Random) -> list[tuple[str, int]]:
    """Returns a random (file, byte) in each of `count` equal ranges over the concatenated files of a checkpoint."""
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
    """Harms files of the newest checkpoint of a copy of the run, one at a time, and reads it.

    Args:
      scratch: the runs.
      fault: name of the fault.
      places: the file and the byte of each fault.
      harm: function of the content of a file and the byte that returns the new content. None deletes the file.
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
    """An opened source with one document more or less, or with one edited document or byte."""

    def __init__(self, documents: Sequence, how: str, place: int):
        self._documents, self._how, self._place = documents, how, place

    @property
    def contents(self) -> Callable[[], Iterator[tuple[str, Any]]] | None:
        """Function that yields the content of each file; None if the source has no files."""
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
    """Compares the fingerprint of the training data with that of the data with one document more, less or edited."""
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
