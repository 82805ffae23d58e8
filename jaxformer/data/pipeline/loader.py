"""Batch loader, the last step of the data pipeline: prepares the batch rows of this process in the background, ahead of
training.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import grain
import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Feature
from jaxformer.data.messages import BadRecords, Problems, tolerating
from jaxformer.data.pipeline import lanes, stalls
from jaxformer.data.sources.fingerprints import Fingerprint, fingerprints
from jaxformer.data.sources.order import in_order, shuffled
from jaxformer.data.sources.sources import Source, located, record, scanned
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError, under
from jaxformer.progress import phase

Batch = dict[str, np.ndarray]

TRAIN, VALIDATION = "data.train", "data.validation"
_CHECKED = 100_000
"""Maximum number of documents per source that are checked before training begins."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Data of an experiment: the sources, the task and the batches."""

    train: Source
    """Documents to train on."""
    task: Task
    """Task that makes training examples from a document."""
    batch: int
    """Number of rows in the global batch."""
    validation: Source | None = None
    """Held-out documents to evaluate on."""
    pack: bool = False
    """Whether to pack several examples into a row if they fit."""
    open_documents: int = 8
    """Number of documents that each row of the batch alternates between. A larger number mixes the examples better."""
    lookahead: int = 16
    """Number of waiting examples to choose from when filling the rest of a row. Only used with `pack`."""
    workers: int = 0
    """Number of processes that prepare training batches. 0 prepares them in a thread of this process."""
    prefetch: int = 8
    """Number of batches to prepare in advance."""
    skip_bad_records: int = 0
    """Number of training documents that may be skipped because they cannot be read. More of them are an error. Each
    process that prepares batches counts its own.
    """
    timeout: float | None = 600.0
    """Number of seconds that training waits for a batch. Then the run ends with an error, and prints what each thread
    is doing. If None, there is no limit.
    """

    def __post_init__(self):
        for field in ("batch", "open_documents", "lookahead", "prefetch"):
            fields.at_least(f"data.{field}", getattr(self, field), 1)
        for field in ("workers", "skip_bad_records", "timeout"):
            fields.at_least(f"data.{field}", getattr(self, field), 0)

    @property
    def num_pending(self) -> int:
        """Maximum number of examples that wait until they fit in a batch row, for each row of the batch: `lookahead`
        with packing, otherwise 0.
        """
        return self.lookahead if self.pack else 0


def check(data: Data, tokenizer: Tokenizer | None) -> None:
    """Checks that the task supports the tokenizer and, if `data.pack` is set, packing. Raises InputError if it does
    not.
    """
    if data.task.reads_text and tokenizer is None:
        raise InputError(f"tokenizer=None: data.task={type(data.task).__name__} reads text and needs one")
    with under("data.task"):
        data.task.check(tokenizer, data.pack)


@phase("checking the documents")
def check_documents(data: Data, names: Sequence[str] = (TRAIN, VALIDATION)) -> dict[str, Fingerprint]:
    """Checks, before training, that the task can read the columns of the documents, and computes fingerprints by which
    a later run can detect that the data has changed.

    Up to 100,000 evenly spaced documents per source are checked, and only in sources whose documents are cheap to read,
    such as JSON Lines files and tables.

    Args:
      data: the sources and the task.
      names: names of the training source and the validation source, for messages. If it contains only one name, only
        the validation source is checked.

    Returns:
      The fingerprint of each source, keyed by its name. Each source of a mixture has its own fingerprint, and its key
      begins with the name of the mixture.

    Raises:
      InputError: If the task cannot read a document. The message lists the first ten such documents by file and line.
    """
    found: dict[str, Fingerprint] = {}
    sources = (data.train, data.validation)[-len(names) :]
    for name, source in zip(names, sources, strict=True):
        if source is None:
            continue
        with tolerating(data.skip_bad_records if name == TRAIN else 0):
            documents = source.open()
            _check_columns(documents, data.task)
            found |= fingerprints(documents, name)
    return found


def _check_columns(documents: Sequence, task: Task) -> None:
    """Raises InputError if the task cannot read the columns of a document, of those that are cheap to read."""
    problems, read = Problems(), 0
    for indices in scanned(documents, _CHECKED):
        read += len(indices)
        for index in indices:
            try:
                with located(documents, index):
                    example = record(documents, index)
                    with under("data.task"):
                        task.read(example)
            except InputError as error:
                problems.add(str(error))
    problems.check("" if read == len(documents) else f" of {read:,} documents read")


def initial_state(data: Data) -> np.ndarray:
    """Returns the state of the data pipeline before the first step, int32 [batch, S], with S integers per batch row."""
    return lanes.initial_state(data.batch, data.open_documents, data.num_pending)


def abandon_documents(data: Data, state: np.ndarray) -> np.ndarray:
    """Returns a state of the data pipeline in which every batch row continues with its next document. Partly used
    documents, and examples that wait until they fit in a row, are dropped.

    Use it if the documents have changed, because the examples to which the state refers may no longer exist. Both
    states are int32 [batch, S], with S integers per batch row.
    """
    state, initial = state.copy(), initial_state(data)
    state[:, 2:] = initial[:, 2:]
    return state


@phase("opening the training data")
def train_batches(
    data: Data,
    tokenizer: Tokenizer | None,
    seed: int,
    rows: Sequence[int],
    state: np.ndarray | None = None,
) -> "Batches":
    """Returns an endless iterator over training batches that contain the given rows of the global batch.

    Args:
      data: sources, task and batch settings.
      tokenizer: encodes the documents. None if the task does not read text.
      seed: random seed. The seed and the step number determine every batch.
      rows: indices, below `data.batch`, of the rows that this process feeds.
      state: state of the data pipeline after an earlier batch, int32 [len(rows), S], with S integers per row. If None,
        starts from the first batch.

    Returns:
      An iterator of (batch, state) pairs: a dict of arrays [len(rows), ...], and the state after this batch, int32
      [len(rows), S]. Close the iterator, or use it as a context manager, to end its threads and processes.

    Raises:
      InputError: If the source gives no example, or the state was saved with other settings.
    """
    check(data, tokenizer)
    state = _check_state(data, rows, state)
    read = functools.partial(_open, data.train, data, tokenizer, seed, shuffle=True)
    reader = read()
    with tolerating(data.skip_bad_records):
        reader.check(str(data.train))
        reader.check_source(str(data.train))
    workers = min(data.workers, len(rows))
    # An open source stays in this process; each worker opens the source for itself.
    batches = _LaneBatches(data, read if workers else lambda: reader, rows, state)
    return Batches(batches, data.prefetch, workers, data.timeout)


def evaluation_batches(
    source: Source, data: Data, tokenizer: Tokenizer | None, seed: int, rows: Sequence[int]
) -> Iterator[Batch]:
    """Yields the batches of one ordered pass over a source.

    Every document is read once and masked in the same way in each evaluation. When a batch row has no more documents
    but other rows have, it is filled with zeros (weight 0, segment 0).

    Args:
      source: documents to evaluate on.
      data: task and batch settings.
      tokenizer: encodes the documents. None if the task does not read text.
      seed: random seed.
      rows: indices, below `data.batch`, of the rows that this process feeds.
    """
    data = dataclasses.replace(data, task=data.task.for_evaluation())
    check(data, tokenizer)
    state = _check_state(data, rows, None)
    reader = _open(source, data, tokenizer, seed, shuffle=False)
    reader.check(str(source))
    batches = _LaneBatches(data, lambda: reader, rows, state)
    return _without_states(Batches(batches, data.prefetch, workers=0, timeout=data.timeout))


class Batches(Iterator[tuple[Batch, np.ndarray]]):
    """Iterator of (batch, state) pairs that a background thread or processes prepare.

    An error in the background is raised unchanged when the next batch is requested. If there is no batch within
    `timeout` seconds, the process ends (see `stalls`).
    """

    def __init__(self, batches: "_LaneBatches", prefetch: int, workers: int, timeout: float | None):
        self._workers, self._stalls = max(workers, 1), stalls.Watch(timeout)
        if workers:
            _mark_flags_as_parsed()
            options = grain.MultiprocessingOptions(workers, max(1, prefetch // workers))
            background = batches.mp_prefetch(options, worker_init_fn=stalls.start_worker)
        else:
            background = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
        self._iterators = [iter(background)]
        # Also close at interpreter exit: a thread inside a tokenizer must not outlive the interpreter.
        self._finalize = weakref.finalize(self, _close, self._iterators, self._stalls)

    def __next__(self) -> tuple[Batch, np.ndarray]:
        if not self._iterators:
            raise StopIteration
        with self._stalls.waiting():
            parts = [next(self._iterators[0]) for _ in range(self._workers)]
        return parts[0] if len(parts) == 1 else _interleave(parts)

    def close(self) -> None:
        """Stops the background work and waits until it has stopped."""
        self._finalize()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _close(iterators: list[grain.DatasetIterator], watch: stalls.Watch) -> None:
    watch.close()
    iterators.pop().close()


class _LaneBatches(grain.IterDataset):
    """Grain dataset of (batch, state) pairs for the batch rows that this process feeds. Its elements are made from a
    parent dataset with one (row number, state of the row) pair per row, so that Grain can divide the rows among worker
    processes.
    """

    def __init__(
        self,
        data: Data,
        read: Callable[[], lanes.Reader],
        rows: Sequence[int],
        state: np.ndarray,
    ):
        states = grain.MapDataset.source(list(zip(map(int, rows), state.tolist(), strict=True)))
        super().__init__(states.to_iter_dataset(grain.ReadOptions(num_threads=0)))
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
    """Iterator of (batch, state) pairs for some batch rows: a dict of arrays [rows, ...], and the state from which each
    row continues, int32 [rows, S]. Ends when none of the rows has further documents.
    """

    def __init__(self, lanes_: list[lanes.Lane], features: dict[str, Feature]):
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

    # Grain requests a state with every element. Every element already contains the lane states.
    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        raise NotImplementedError("pass the lane states to train_batches")


def _open(source: Source, data: Data, tokenizer: Tokenizer | None, seed: int, shuffle: bool) -> lanes.Reader:
    most = data.skip_bad_records if shuffle else 0  # Held-out documents are never skipped: it would change the metrics.
    with tolerating(most):
        documents = source.open()
    order = shuffled(documents, seed) if shuffle else in_order(documents)
    return lanes.Reader(documents, order, data.task, tokenizer, seed, BadRecords(most))


def _check_state(data: Data, rows: Sequence[int], state: np.ndarray | None) -> np.ndarray:
    if not len(rows) or not all(0 <= row < data.batch for row in rows):
        raise InputError(f"rows={list(rows)}: expected indices below data.batch={data.batch}")
    initial = initial_state(data)[list(rows)]
    if state is None:
        return initial
    if np.shape(state) != initial.shape:
        raise InputError(
            f"the lane states have shape {np.shape(state)}: expected {initial.shape}; data.batch, data.pack, "
            "data.open_documents and data.lookahead must be the same as when it was saved"
        )
    return np.asarray(state)


def _interleave(parts: list[tuple[Batch, np.ndarray]]) -> tuple[Batch, np.ndarray]:
    """Merges the (batch, state) pairs of W worker processes into one pair. Worker w prepared rows w, w + W, w + 2W, ...
    of the result.
    """

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
    # Grain's worker processes read absl flags, which are only parsed in an absl program.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
