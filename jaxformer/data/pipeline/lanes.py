"""Packs the training examples of documents into batch rows, one independent stream (lane) per row.

Row r of every batch is filled by lane r. With B rows per batch, lane r reads every B-th document of one endless
document order, starting at the r-th document. Its n-th row is a function of (seed, n, r) only: other lanes, hosts and
restarts do not affect it. The state of a lane is a few integers, int32 [S]:

    next visit, turn, (visit, example) of each open document, (visit, example) of each pending example

A visit is one reading of one document, counted per lane; -1 means no visit. An open document has examples that are not
yet used, and `turn` is the index of the open document that gives the next example. A pending example waits until it
fits in a row. A lane is restored from its state by encoding the documents of these visits again.
"""

import collections
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.messages import BadRecords
from jaxformer.data.sources.sources import components, located, random_index, record
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError, under

_CACHE_SIZE = 2**25
"""Maximum total size of the encoded documents that a `Reader` caches, in units of four bytes. The size of a text in
these units is its number of characters.
"""
_NO_VISIT = -1
_COUNT = np.arange(2**20, dtype=np.int32)
PACKED_KEYS = {"tokens": ("segments", "position_ids"), "inputs": ("input_segments", "input_position_ids")}
"""Maps `tokens` and `inputs` to the names of two more arrays of a packed batch row. The first contains, for each token,
the number of its example in the row (segment), and the second its position in the example.
"""


class Reader:
    """Reads, encodes and caches documents, and makes training examples from them. The batch rows that a process
    prepares share one reader.
    """

    def __init__(
        self,
        documents: Sequence[dict[str, Any]],
        order: grain.MapDataset,
        task: Task,
        tokenizer: Tokenizer | None,
        seed: int,
        bad: BadRecords | None = None,
    ):
        """Reads nothing yet.

        Args:
          documents: the opened source.
          order: endless order of the documents.
          task: makes examples of documents.
          tokenizer: encodes documents. None if the task reads no text.
          seed: random seed.
          bad: records that could not be used. None if there may be none.
        """
        self._documents, self._order, self._seed, self._bad = documents, order, seed, bad or BadRecords(0)
        # A task that reads no text is not given a tokenizer, and does not use it.
        self._task, self._tokenizer = task, cast(Tokenizer, tokenizer)
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._cached = 0
        self.visits = len(order)

    def examples(self, visit: int) -> list[Example]:
        """Returns the training examples of the document at one position of the endless document order.

        Args:
          visit: position in the document order. The examples are a function of (seed, visit) only.
        """
        index: Any = self._order[visit]  # Never None: no visit is left out.
        return self._read(int(index), np.random.default_rng((self._seed, visit)))

    def check(self, name: str) -> None:
        """Checks that the source contains a document from which the task makes a training example. In a mixture, checks
        each of its sources.

        Args:
          name: name of the source, for error messages.

        Raises:
          InputError: If the task makes no example from any document of a source, or the source has fewer documents than
            the task needs.
        """
        task, least = type(self._task).__name__, self._task.min_documents
        if len(self._documents) < least:
            raise InputError(f"{name}: holds {len(self._documents)} document; {task} needs {least} or more")
        for part, indices in components(self._documents, name):
            if not any(self._read(index, np.random.default_rng((self._seed, index))) for index in indices):
                raise InputError(
                    f"{part}: has no {self._task.requirement}, so {task} makes no example; expected other documents or "
                    "another task"
                )

    def check_source(self, name: str) -> None:
        """Raises InputError if the task cannot learn from the source, for example because all its labels are the
        same.
        """
        with under("data.task"):
            self._task.check_source(self._documents, name)

    def _read(self, index: int, rng: np.random.Generator) -> list[Example]:
        visit = Visit(self._tokenizer, rng, lambda rng: self._draw(index, rng))
        document = self._usable(index)
        return [] if document is None else self._task.examples(document, visit)

    def _draw(self, index: int, rng: np.random.Generator) -> Any:
        other, document = index, None
        while other == index or document is None:
            other = random_index(self._documents, rng)
            document = None if other == index else self._usable(other)
        return document

    def _usable(self, index: int) -> Any:
        """Returns a document, or None if its record cannot be used and may be skipped."""
        if index in self._bad:
            return None
        try:
            return self._document(index)
        except InputError as error:
            self._bad.skip(index, error)
            return None

    def _document(self, index: int) -> Any:
        document = self._cache.get(index)
        if document is not None:
            self._cache.move_to_end(index)
            return document
        with located(self._documents, index):
            example = record(self._documents, index)
            with under("data.task"):
                document = self._task.encode(example, self._tokenizer)
        self._cache[index] = document
        self._cached += document.size
        while self._cached > _CACHE_SIZE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size
        return document


class PendingExample(NamedTuple):
    """A training example that waits until it fits in a batch row."""

    visit: int
    """Number of the visit (one reading of a document) that produced the example."""
    index: int
    """Index of the example among all examples of its visit (one reading of a document)."""
    sizes: tuple[int, ...]
    """Number of entries in each array of the example, in the order of `Task.row` (the dict of array layouts)."""
    example: Example
    """Arrays of the example, keyed by name."""


class Lane:
    """Fills one row of each batch: row `number` of the `lanes` rows of the global batch.

    Several documents are open at the same time and take turns, so that the examples of a long document are spread over
    many steps. With packing, up to `lookahead` examples wait for a row (are pending). A row takes the oldest pending
    example first, and then repeatedly the longest example (tokens and inputs together) that still fits. Examples are
    never cut. An example is pending for at most `lookahead` rows.
    """

    def __init__(
        self,
        reader: Reader,
        features: dict[str, Feature],
        number: int,
        lanes: int,
        state: Sequence[int],
        num_open: int,
    ):
        """Restores a lane, which fills one row of each batch, from its state.

        Args:
          reader: makes the examples of documents.
          features: maps array names to the layouts of the arrays in a row.
          number: index of the batch row that this lane fills.
          lanes: number of rows in the global batch.
          state: one row of `initial_state`, or an earlier result of the method `state`.
          num_open: number of documents that are open at the same time.
        """
        self._reader, self._features, self._number, self._lanes = reader, features, number, lanes
        self._next, self._turn, *numbers = map(int, state)
        marks = list(zip(numbers[::2], numbers[1::2], strict=True))
        self._open = marks[:num_open]
        self._examples: list[list[Example] | None] = [None] * num_open
        self._lookahead = len(marks) - num_open
        self._pending = [
            self._pending_example(visit, index, self._visit(visit))
            for visit, index in marks[num_open:]
            if visit != _NO_VISIT
        ]

    def state(self) -> list[int]:
        """Returns the state of the lane after its latest row, a list of integers from which a new `Lane` can continue:
        next visit, turn, (visit, example) of each open document, (visit, example) of each pending example (see the
        module docstring).
        """
        marks = self._open + [pending[:2] for pending in self._pending]
        marks += [(_NO_VISIT, 0)] * (self._lookahead - len(self._pending))
        return [self._next, self._turn, *(number for mark in marks for number in mark)]

    def next_row(self) -> list[Example]:
        """Returns the examples of the next batch row. The list is empty after the last document."""
        if not self._lookahead:
            taken = self._take()
            return [taken.example] if taken else []
        row: list[Example] = []
        room = [feature.capacity for feature in self._features.values()]
        packed = [index for index, key in enumerate(self._features) if key in PACKED_KEYS]
        while True:
            self._refill()
            fitting = [
                number for number, pending in enumerate(self._pending) if all(map(operator.le, pending.sizes, room))
            ]
            if not fitting:
                return row
            # Each row begins with the oldest pending example, so that every example is used eventually.
            best = max(fitting, key=lambda n: sum(self._pending[n].sizes[i] for i in packed)) if row else 0
            taken = self._pending.pop(best)
            room = list(map(operator.sub, room, taken.sizes))
            row.append(taken.example)

    def _refill(self) -> None:
        while len(self._pending) < self._lookahead and (taken := self._take()):
            self._pending.append(taken)

    def _take(self) -> PendingExample | None:
        """Returns the next training example, which the open documents take turns in providing. Returns None after the
        last document.
        """
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
                return self._pending_example(visit, index, examples)
            self._open[turn], self._examples[turn] = (_NO_VISIT, 0), []
        return None

    def _pending_example(self, visit: int, index: int, examples: list[Example]) -> PendingExample:
        example = examples[index]
        return PendingExample(visit, index, tuple(len(example[key]) for key in self._features), example)

    def _visit(self, visit: int) -> list[Example]:
        return [] if visit == _NO_VISIT else self._reader.examples(self._global(visit))

    def _global(self, visit: int) -> int:
        return visit * self._lanes + self._number


def initial_state(lanes: int, num_open: int, lookahead: int) -> np.ndarray:
    """Returns the states of all lanes before their first row, int32 [lanes, 2 + 2 * (num_open + lookahead)].

    Args:
      lanes: number of lanes. Each fills one row of every batch.
      num_open: number of documents that a lane alternates between.
      lookahead: maximum number of examples of a lane that wait until they fit in a row.
    """
    marks = [_NO_VISIT, 0] * (num_open + lookahead)
    return np.tile(np.array([0, 0, *marks], np.int32), (lanes, 1))


def empty_batch(rows: int, features: dict[str, Feature]) -> dict[str, np.ndarray]:
    """Returns a batch of zeros: an array [rows, capacity, ...] for each feature and, for `tokens` and `inputs`, the
    int32 arrays [rows, capacity] of their segments and position ids (see `PACKED_KEYS`). All are keyed by name.
    """
    batch = {
        key: np.zeros((rows, feature.capacity, *feature.shape), feature.dtype) for key, feature in features.items()
    }
    for key, names in PACKED_KEYS.items():
        if key in features:
            batch |= {name: np.zeros((rows, features[key].capacity), np.int32) for name in names}
    return batch


def write_row(batch: dict[str, np.ndarray], number: int, row: list[Example], features: dict[str, Feature]) -> None:
    """Writes the training examples of a row one after the other into row `number` of `batch`, which is zero before.

    The segment numbers (1 for the first example of the row) are the same in all arrays, such as `tokens` and `inputs`,
    so that a model can match the parts of an example.
    """
    ends = dict.fromkeys(features, 0)
    for segment, example in enumerate(row, 1):
        start = ends.get("tokens", 0)
        for key, feature in features.items():
            values = example[key]
            end = ends[key]
            ends[key] = stop = end + len(values)
            batch[key][number, end:stop] = values + start if feature.offset and start else values
            if key in PACKED_KEYS:
                segments, position_ids = PACKED_KEYS[key]
                batch[segments][number, end:stop] = segment
                batch[position_ids][number, end:stop] = _COUNT[: stop - end]
