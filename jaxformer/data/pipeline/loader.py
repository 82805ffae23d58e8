"""The host's half of step 5: batches of this process's rows, prefetched, with the lanes' states."""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import grain
import numpy as np

from jaxformer.data.messages import Problems
from jaxformer.data.pipeline import lanes
from jaxformer.data.sources.sources import Source, in_order, located, scanned, shuffled
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.progress import phase

Batch = dict[str, np.ndarray]

_CHECKED = 100_000


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read, what is made of it, and how many rows of it a step sees."""

    train: Source
    """Documents to train on."""
    task: Task
    """What is learned from a document."""
    batch: int
    """Rows of the global batch."""
    validation: Source | None = None
    """Held-out documents to evaluate on."""
    pack: bool = False
    """Lay several examples into a row, as long as they fit."""
    open_documents: int = 8
    """Documents that take turns in each row of the batch; more of them mix better."""
    lookahead: int = 16
    """With pack: examples to choose from when a row has room left."""
    workers: int = 0
    """Processes that prepare training batches; 0 is one thread of this process."""
    prefetch: int = 8
    """Batches prepared in advance."""

    def __post_init__(self):
        least = {"batch": 1, "open_documents": 1, "lookahead": 1, "workers": 0, "prefetch": 1}
        for field, limit in least.items():
            if getattr(self, field) < limit:
                raise InputError(f"data.{field} {getattr(self, field)}: must be {limit} or more")

    @property
    def waiting(self) -> int:
        """Examples that wait in a lane."""
        return self.lookahead if self.pack else 0


def check(data: Data, tokenizer: Tokenizer | None) -> None:
    """Raises InputError where task, tokenizer and packing do not go together."""
    if data.task.reads_text and tokenizer is None:
        raise InputError(f"tokenizer=None: data.task={type(data.task).__name__} reads text and needs one")
    data.task.check(tokenizer, data.pack)


@phase("checking the documents")
def check_documents(data: Data) -> None:
    """Reads the columns of the documents in files, before anything is made of them.

    Up to 100,000 documents of each source are read, evenly spaced.

    Raises:
        InputError: lists the first ten documents without what the task reads, by file and line.
    """
    for source in filter(None, (data.train, data.validation)):
        documents, problems, read = source.open(), Problems(), 0
        for indices in scanned(documents, _CHECKED):
            read += len(indices)
            for index in indices:
                try:
                    with located(documents, index):
                        data.task.read(documents[index])
                except InputError as error:
                    problems.add(str(error))
        problems.check("" if read == len(documents) else f" of {read:,} documents read")


def initial_state(data: Data) -> np.ndarray:
    """int32 [batch, S], the states of all lanes before the first step."""
    return lanes.initial_state(data.batch, data.open_documents, data.waiting)


@phase("opening the training data")
def train_batches(
    data: Data,
    tokenizer: Tokenizer | None,
    seed: int,
    rows: Sequence[int],
    state: np.ndarray | None = None,
) -> "Batches":
    """Endless training batches of some rows of the global batch.

    Args:
        data: what to read and how.
        tokenizer: encodes the documents; None where the task reads no text.
        seed: with the number of the step, decides everything in a batch.
        rows: global numbers, below data.batch, of the rows that this process feeds.
        state: int32 [len(rows), S], lanes as a batch before has left them; None begins anew.

    Returns:
        An iterator of (batch, state): arrays [len(rows), ...] by key, and the lanes' state after
        this batch, int32 [len(rows), S]. Close it, or use it as a context, to end its work.

    Raises:
        InputError: nothing can be made of the source, or the state is of another setting.
    """
    check(data, tokenizer)
    state = _check_state(data, rows, state)
    read = functools.partial(_open, data.train, data, tokenizer, seed, shuffle=True)
    reader = read()
    reader.check(str(data.train))
    reader.check_source(str(data.train))
    workers = min(data.workers, len(rows))
    # What is open stays in this process; each of the others opens the source by itself.
    batches = _LaneBatches(data, read if workers else lambda: reader, rows, state)
    return Batches(batches, data.prefetch, workers)


def evaluation_batches(
    source: Source, data: Data, tokenizer: Tokenizer | None, seed: int, rows: Sequence[int]
) -> Iterator[Batch]:
    """One pass over a source in its order, every document once, masked the same way every time.

    Lanes that have come to their end give rows of zeros (no weight, no segment) until the last of
    `rows` has. Arguments as those of `train_batches`.
    """
    data = dataclasses.replace(data, task=data.task.evaluated)
    check(data, tokenizer)
    state = _check_state(data, rows, None)
    reader = _open(source, data, tokenizer, seed, shuffle=False)
    reader.check(str(source))
    batches = _LaneBatches(data, lambda: reader, rows, state)
    return _without_states(Batches(batches, data.prefetch, workers=0))


class Batches(Iterator[tuple[Batch, np.ndarray]]):
    """Batches from the background. Errors there are raised here, as they are."""

    def __init__(self, batches: "_LaneBatches", prefetch: int, workers: int):
        self._workers = max(workers, 1)
        if workers:
            _mark_flags_as_parsed()
            options = grain.MultiprocessingOptions(workers, max(1, prefetch // workers))
            background = batches.mp_prefetch(options)
        else:
            background = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
        self._iterators = [iter(background)]
        # Also at the interpreter's exit: a thread inside a tokenizer must not outlive it.
        self._finalize = weakref.finalize(self, _close, self._iterators)

    def __next__(self) -> tuple[Batch, np.ndarray]:
        if not self._iterators:
            raise StopIteration
        parts = [next(self._iterators[0]) for _ in range(self._workers)]
        return parts[0] if len(parts) == 1 else _interleave(parts)

    def close(self) -> None:
        """Ends the work in the background; returns when it has ended."""
        self._finalize()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _close(iterators: list[grain.DatasetIterator]) -> None:
    iterators.pop().close()


class _LaneBatches(grain.IterDataset):
    """Batches of the lanes `rows`. Its parent is the rows, which Grain divides among processes."""

    def __init__(
        self,
        data: Data,
        read: Callable[[], lanes.Reader],
        rows: Sequence[int],
        state: np.ndarray,
    ):
        marked = grain.MapDataset.source(list(zip(map(int, rows), state.tolist(), strict=True)))
        super().__init__(marked.to_iter_dataset(grain.ReadOptions(num_threads=0)))
        self._data, self._read = data, read

    def __iter__(self) -> "_LaneIterator":
        data, reader = self._data, self._read()
        features = data.task.row
        return _LaneIterator(
            [
                lanes.Lane(reader, features, number, data.batch, state, data.open_documents)
                for number, state in self._parent
            ],
            features,
        )


class _LaneIterator(grain.DatasetIterator):
    """(batch, state) of some lanes, until the last of them has come to its end."""

    def __init__(self, lanes_: list[lanes.Lane], features: dict[str, lanes.Feature]):
        super().__init__()
        self._lanes, self._features = lanes_, features

    def __next__(self) -> tuple[Batch, np.ndarray]:
        rows = [lane.next_row() for lane in self._lanes]
        if not any(rows):
            raise StopIteration
        batch = lanes.empty_batch(len(rows), self._features)
        for number, row in enumerate(rows):
            lanes.write_row(batch, number, row, self._features)
        return batch, np.array([lane.state() for lane in self._lanes], np.int32)

    # Grain asks for a state with every element; the lanes' own travels with the batch.
    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        raise NotImplementedError("pass the lanes' state to train_batches")


def _open(source: Source, data: Data, tokenizer: Tokenizer, seed: int, shuffle: bool) -> lanes.Reader:
    documents = source.open()
    order = shuffled(documents, seed) if shuffle else in_order(documents)
    return lanes.Reader(documents, order, data.task, tokenizer, seed)


def _check_state(data: Data, rows: Sequence[int], state: np.ndarray | None) -> np.ndarray:
    if not len(rows) or not all(0 <= row < data.batch for row in rows):
        raise InputError(f"rows {list(rows)}: must be numbers below data.batch {data.batch}")
    initial = initial_state(data)[list(rows)]
    if state is None:
        return initial
    if np.shape(state) != initial.shape:
        raise InputError(
            f"the lanes' state is {np.shape(state)}, expected {initial.shape}: data.batch, pack, "
            "open_documents and lookahead must be those that it was saved with"
        )
    return np.asarray(state)


def _interleave(parts: list[tuple[Batch, np.ndarray]]) -> tuple[Batch, np.ndarray]:
    """Worker w has the rows w, w + W, w + 2W, ..."""

    def merge(arrays: list[np.ndarray]) -> np.ndarray:
        merged = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
        for number, array in enumerate(arrays):
            merged[number :: len(arrays)] = array
        return merged

    batches, states = zip(*parts, strict=True)
    return {key: merge([b[key] for b in batches]) for key in batches[0]}, merge(list(states))


def _without_states(batches: Batches) -> Iterator[Batch]:
    with contextlib.closing(batches):
        for batch, _ in batches:
            yield batch


def _mark_flags_as_parsed() -> None:
    # Grain's processes read absl's flags, which only an absl program parses.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
