"""Step 4 of the way of the data: lanes, each of which packs examples into rows of its own.

A global batch of B rows is B lanes. Lane r visits every B-th document of one endless order, from the
r-th on, and its n-th row is a function of (seed, n, r) alone: of no other lane, host or restart. A lane
is described completely by a few integers, its state, int32 [S]:

    next visit, turn, (visit, example) of each open document, (visit, example) of each waiting example

A visit is one reading of one document, counted within the lane; -1 is none. Whoever holds a state
restores the lane by encoding the documents that it names.
"""

import collections
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxformer.data.sources.sources import components, located, random_index
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError

# Characters of encoded documents that a reader keeps; about four bytes of memory each.
_CACHE_SIZE = 2**25
_NO_VISIT = -1
_COUNT = np.arange(2**20, dtype=np.int32)
# Beside each of these arrays a row has the segments and the positions of its entries.
_NUMBERED = {"tokens": ("segments", "position_ids"), "inputs": ("input_segments", "input_position_ids")}


class Reader:
    """What the lanes of a process share: from the number of a visit to its examples."""

    def __init__(
        self,
        documents: Sequence[dict[str, Any]],
        order: grain.MapDataset,
        task: Task,
        tokenizer: Tokenizer,
        seed: int,
    ):
        self._documents, self._order, self._seed = documents, order, seed
        self._task, self._tokenizer = task, tokenizer
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._cached = 0
        self.visits = len(order)

    def examples(self, visit: int) -> list[Example]:
        """The examples of a visit, a function of (seed, visit) alone."""
        index = int(self._order[visit])
        return self._read(index, np.random.default_rng((self._seed, visit)))

    def check(self, name: str) -> None:
        """Raises InputError if no document, or none of a mixture's component, gives an example; looks only as far as
        the first."""
        if len(self._documents) < self._task.least_documents:
            raise InputError(
                f"{name}: holds {len(self._documents)} document; {type(self._task).__name__} needs "
                f"{self._task.least_documents} or more"
            )
        for part, indices in components(self._documents, name):
            if not any(self._read(index, np.random.default_rng((self._seed, index))) for index in indices):
                raise InputError(
                    f"{part}: has no {self._task.need}, so {type(self._task).__name__} makes no example; "
                    "give other documents or another task"
                )

    def check_source(self, name: str) -> None:
        """Raises InputError where the task can learn nothing from such documents."""
        self._task.check_source(self._documents, name)

    def _read(self, index: int, rng: np.random.Generator) -> list[Example]:
        return self._task.examples(self._document(index), self._tokenizer, rng, lambda rng: self._draw(index, rng))

    def _draw(self, index: int, rng: np.random.Generator) -> Any:
        other = index
        while other == index:
            other = random_index(self._documents, rng)
        return self._document(other)

    def _document(self, index: int) -> Any:
        document = self._cache.get(index)
        if document is not None:
            self._cache.move_to_end(index)
            return document
        with located(self._documents, index):
            document = self._task.encode(self._documents[index], self._tokenizer)
        self._cache[index] = document
        self._cached += document.size
        while self._cached > _CACHE_SIZE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size
        return document


class Marked(NamedTuple):
    """An example and where it comes from: example `index` of a lane's `visit`."""

    visit: int
    index: int
    sizes: tuple[int, ...]
    example: Example


class Lane:
    """The rows of lane `number` of `lanes`.

    Several documents are open at once and take turns, so that the rows of a long one are spread over
    many steps. With packing, `lookahead` examples wait, and a row takes the oldest of them and then
    again and again the longest that still fits, inputs counted in: an example is never cut, and waits
    for at most `lookahead` rows.
    """

    def __init__(
        self,
        reader: Reader,
        features: dict[str, Feature],
        number: int,
        lanes: int,
        state: Sequence[int],
        opened: int,
    ):
        """`state` is a row of `initial_state`, or what `self.state()` once was."""
        self._reader, self._features, self._number, self._lanes = reader, features, number, lanes
        self._next, self._turn, *numbers = map(int, state)
        marks = list(zip(numbers[::2], numbers[1::2], strict=True))
        self._open = marks[:opened]
        self._examples: list[list[Example] | None] = [None] * opened
        self._lookahead = len(marks) - opened
        self._waiting = [
            self._mark(visit, index, self._visit(visit)) for visit, index in marks[opened:] if visit != _NO_VISIT
        ]

    def state(self) -> list[int]:
        """S numbers, with which a lane continues after the row made last."""
        marks = self._open + [marked[:2] for marked in self._waiting]
        marks += [(_NO_VISIT, 0)] * (self._lookahead - len(self._waiting))
        return [self._next, self._turn, *(number for mark in marks for number in mark)]

    def next_row(self) -> list[Example]:
        """The examples of the next row; none where the order of the documents has come to its end."""
        if not self._lookahead:
            taken = self._take()
            return [taken.example] if taken else []
        row: list[Example] = []
        room = [feature.capacity for feature in self._features.values()]
        numbered = [index for index, key in enumerate(self._features) if key in _NUMBERED]
        while True:
            self._refill()
            fitting = [
                number for number, marked in enumerate(self._waiting) if all(map(operator.le, marked.sizes, room))
            ]
            if not fitting:
                return row
            # The oldest begins the row, so that none waits for ever.
            best = max(fitting, key=lambda n: sum(self._waiting[n].sizes[i] for i in numbered)) if row else 0
            taken = self._waiting.pop(best)
            room = list(map(operator.sub, room, taken.sizes))
            row.append(taken.example)

    def _refill(self) -> None:
        while len(self._waiting) < self._lookahead and (taken := self._take()):
            self._waiting.append(taken)

    def _take(self) -> Marked | None:
        """The next example of the open document whose turn it is; None at the end."""
        for _ in self._open:
            turn, self._turn = self._turn, (self._turn + 1) % len(self._open)
            visit, index = self._open[turn]
            examples = self._examples[turn]
            if examples is None:
                examples = self._visit(visit)
            while index >= len(examples) and self._global(self._next) < self._reader.visits:
                visit, index = self._next, 0
                self._next += 1
                examples = self._visit(visit)
            if index < len(examples):
                self._open[turn], self._examples[turn] = (visit, index + 1), examples
                return self._mark(visit, index, examples)
            self._open[turn], self._examples[turn] = (_NO_VISIT, 0), []
        return None

    def _mark(self, visit: int, index: int, examples: list[Example]) -> Marked:
        example = examples[index]
        return Marked(visit, index, tuple(len(example[key]) for key in self._features), example)

    def _visit(self, visit: int) -> list[Example]:
        return [] if visit == _NO_VISIT else self._reader.examples(self._global(visit))

    def _global(self, visit: int) -> int:
        return visit * self._lanes + self._number


def initial_state(lanes: int, opened: int, lookahead: int) -> np.ndarray:
    """int32 [lanes, 2 + 2 * (opened + lookahead)], before the first row."""
    marks = [_NO_VISIT, 0] * (opened + lookahead)
    return np.tile(np.array([0, 0, *marks], np.int32), (lanes, 1))


def empty_batch(rows: int, features: dict[str, Feature]) -> dict[str, np.ndarray]:
    """Arrays of zeros [rows, capacity, ...] for `features`, and segments and positions beside `tokens` and `inputs`."""
    batch = {
        key: np.zeros((rows, feature.capacity, *feature.shape), feature.dtype) for key, feature in features.items()
    }
    for key, names in _NUMBERED.items():
        if key in features:
            batch |= {name: np.zeros((rows, features[key].capacity), np.int32) for name in names}
    return batch


def write_row(batch: dict[str, np.ndarray], number: int, row: list[Example], features: dict[str, Feature]) -> None:
    """Lays examples one after the other into row `number` of a batch of zeros.

    An example has one number in all segments of the row, so that its tokens find its inputs.
    """
    ends = dict.fromkeys(features, 0)
    for segment, example in enumerate(row, 1):
        start = ends.get("tokens", 0)
        for key, feature in features.items():
            values = example[key]
            end = ends[key]
            ends[key] = stop = end + len(values)
            batch[key][number, end:stop] = values + start if feature.offset and start else values
            if key in _NUMBERED:
                segments, position_ids = _NUMBERED[key]
                batch[segments][number, end:stop] = segment
                batch[position_ids][number, end:stop] = _COUNT[: stop - end]
