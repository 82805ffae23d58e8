"""Data sources, the first step of the data pipeline: sources of documents, such as text files and TFDS data sets.

A source is a frozen dataclass of plain values. `source.open()` returns a random-access sequence of examples, each a
dict of named columns. See the module `order` for the order in which the examples of such a sequence are read.
"""

import abc
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.messages import at, tolerated
from jaxformer.data.sources import columns, files, tfds_builders
from jaxformer.errors import FieldError, InputError
from jaxformer.fields import one_line


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Source of documents. Abstract: use a subclass, such as `TextFiles` or `Tfds`."""

    @abc.abstractmethod
    def open(self) -> Sequence[dict[str, Any]]:
        """Opens the source. Returns a random-access sequence of examples, each a dict of named columns.

        Raises InputError if there are no examples.
        """


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """A TensorFlow Datasets (TFDS) data set, read from array_record files without TensorFlow.

    A data set is prepared on first use. Preparing some of them requires more than this library installs: Apache Beam
    (wikipedia, c4, wiki40b, natural_questions and other large data sets), TensorFlow, or manually downloaded files
    (imagenet2012). Prepare these elsewhere with `tfds build NAME --file_format=array_record --data_dir=DIR`, copy DIR
    to this machine and set `data_dir` to it. Reading a prepared data set requires none of these.
    """

    name: str = "bible/web"
    """Name of the data set with its config and version, such as bible/web, glue/mrpc or glue/mrpc:2.0.0, or path of the
    folder of a prepared data set.
    """
    split: str = "train"
    """Split in the notation of TFDS, such as train, validation or train[:10%]."""
    data_dir: str | None = None
    """Folder of prepared data sets. If None, uses the default folder of TFDS."""

    def open(self) -> Sequence[dict[str, Any]]:
        builder = tfds_builders.prepared(self.name, self.data_dir, self.split)
        try:
            examples = builder.as_data_source(split=self.split)
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise InputError(f"{self.name}: no split {self.split!r}; there are: {splits}") from error
        except NotImplementedError as error:
            raise InputError(
                f"{builder.data_dir}: prepared as {builder.info.file_format.value}, which has no random access; "
                f"tfds convert_format --dataset_dir={builder.data_dir} --out_file_format=array_record adds it on a "
                "machine with TensorFlow"
            ) from error
        if not len(examples):
            raise InputError(f"{self.name}: split {self.split!r} is empty")
        with tfds_builders.quiet():
            examples[0]  # At the first image, TFDS recommends a decoder other than Pillow.
        return Decoded(examples, f"{self.name}: split {self.split}")


@dataclasses.dataclass(frozen=True)
class TextFiles(Source):
    """Source of documents in plain text files. Compressed files (`.gz`) and files not in UTF-8 are decoded into memory;
    others are memory-mapped.
    """

    paths: tuple[str, ...] = ()
    """Paths or glob patterns of the files."""
    documents: Literal["blank_line", "line", "file"] = "blank_line"
    """How documents are separated: by blank lines, by every line break (one document per line), or one document per
    file.
    """
    encoding: str = "utf-8"
    """Python name of the file encoding: utf-8, latin-1, cp1252, utf-16."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return files.TextDocuments(files.expand(self.paths), self.documents, self.encoding)


@dataclasses.dataclass(frozen=True)
class JsonLines(Source):
    """Source of examples in JSON Lines files, which contain one JSON object per line. Compressed files (`.gz`) and
    files not in UTF-8 are decoded into memory.
    """

    paths: tuple[str, ...] = ()
    """Paths or glob patterns of the files."""
    encoding: str = "utf-8"
    """Python name of the file encoding, such as utf-8 or latin-1."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return files.JsonDocuments(files.expand(self.paths), self.encoding)


@dataclasses.dataclass(frozen=True)
class ParallelFiles(Source):
    """Source of text pairs, which are corresponding lines of two text files, such as translations. Pairs with an empty
    line are skipped.
    """

    inputs: str
    """Path of the file with the input texts."""
    targets: str
    """Path of the file with the target texts. Line n is the target of line n of `inputs`."""
    encoding: str = "utf-8"
    """Python name of the encoding of both files, such as utf-8 or latin-1."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return files.ParallelLines(os.path.expanduser(self.inputs), os.path.expanduser(self.targets), self.encoding)


@dataclasses.dataclass(frozen=True)
class Columns(Source):
    """Source that renames two text columns of another source to `inputs` and `targets`. Other columns are left out.

    Use it in a `Mixture` of sources with different columns, to train one model on several tasks.
    """

    source: Source
    """Source whose columns are renamed."""
    inputs: str = "inputs"
    """Name of the column with the input text."""
    targets: str = "targets"
    """Name of the column with the target text."""
    prefix: str = ""
    """Text to add before the inputs, such as "translate English to German: "."""

    def open(self) -> Sequence[dict[str, Any]]:
        return self._wrap(self.source.open())

    def _wrap(self, documents: Sequence) -> Sequence[dict[str, Any]]:
        # A mixture stays a `Mixed`, because its order depends on its weights.
        if isinstance(documents, Mixed):
            return Mixed([self._wrap(part) for part in documents.parts], documents.weights, documents.names)
        return Renamed(documents, self)


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """Mixture of several sources. Each source is shuffled and repeated separately, and supplies a share of the training
    documents that is proportional to its weight.
    """

    sources: tuple[Source, ...] = ()
    """Sources to mix."""
    weights: tuple[float, ...] = ()
    """Weight of each source, proportional to its share of the documents that are read. A source with weight 0 is left
    out.
    """

    def __post_init__(self):
        if len(self.sources) != len(self.weights) or not self.sources:
            problem = f"{len(self.sources)} sources; expected one weight for each source, and at least one source"
            raise FieldError("data.train.weights", f"={self.weights}: {problem}")
        if not all(0 <= weight < float("inf") for weight in self.weights) or not any(self.weights):
            raise FieldError("data.train.weights", f"={self.weights}: expected no negative number, and one above 0")

    def open(self) -> "Mixed":
        used = [pair for pair in zip(self.sources, self.weights, strict=True) if pair[1] > 0]
        sources, weights = zip(*used, strict=True)
        return Mixed([source.open() for source in sources], list(weights), list(map(str, sources)))


class Mixed(Sequence):
    """Sequence of all documents of an opened mixture: the documents of its first source, followed by those of the
    second, and so on. The weights determine how often training reads documents of each source (see `order.shuffled`).
    """

    def __init__(self, parts: list[Sequence], weights: list[float], names: list[str]):
        self.parts, self.weights, self.names = parts, weights, names
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        self.thresholds = np.cumsum(weights) / np.sum(weights)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, index = self._find(index)
        return part[index]

    def place(self, index: int) -> str:
        """Returns the origin of document `index` for error messages, such as its file and line."""
        return place(*self._find(index))

    def _find(self, index: int) -> tuple[Sequence, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], int(index - self.starts[part])


class Renamed(Sequence):
    """Sequence of examples {"inputs": str, "targets": str}, made by renaming columns of other examples and adding the
    prefix to the inputs (see `Columns`).
    """

    def __init__(self, examples: Sequence, columns: Columns):
        self.examples, self.columns = examples, columns
        self.scan = getattr(examples, "scan", False)

    def __len__(self) -> int:
        return len(self.examples)

    def place(self, index: int) -> str:
        """Returns the origin of example `index` for error messages, such as its file and line."""
        return place(self.examples, index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example, names = self.examples[index], self.columns
        inputs = columns.text(example, names.inputs, "Columns.inputs")
        targets = columns.text(example, names.targets, "Columns.targets")
        # An empty input gets no prefix, so that it gives no example.
        return {"inputs": names.prefix + inputs if inputs else "", "targets": targets}


class Decoded(Sequence):
    """Sequence of TFDS examples in which texts are decoded from bytes to str. Bytes that are not UTF-8, such as an
    image, stay bytes.
    """

    def __init__(self, examples: Sequence, name: str):
        self.examples, self.name = examples, name

    def place(self, index: int) -> str:
        """Returns the origin of example `index` for error messages: the data set, the split, and the index in the
        split. For example, "bible/web: split train, example 7".
        """
        return f"{self.name}, example {index}"

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _decode(self.examples[int(index)])


def place(documents: Sequence, index: int) -> str:
    """Returns the origin of document `index` for error messages: its file and line, or its split and index."""
    own = getattr(documents, "place", None)
    return own(index) if own else f"example {index}"


@contextlib.contextmanager
def located(documents: Sequence, index: int) -> Iterator[None]:
    """Context manager that adds the origin of document `index`, such as its file and line, to errors raised in its
    block, and to notes about records that are skipped.
    """
    try:
        with at(functools.partial(place, documents, index)):
            yield
    except InputError as error:
        raise InputError(f"{place(documents, index)}: {error}") from error
    except Exception as error:
        error.add_note(f"while reading {place(documents, index)}")
        raise


@contextlib.contextmanager
def skippable(documents: Sequence, index: int) -> Iterator[None]:
    """Context manager like `located`. If wrong records are tolerated (`messages.tolerating`), an InputError ends the
    block without being raised.
    """
    try:
        with located(documents, index):
            yield
    except InputError:
        if not tolerated():
            raise


def record(documents: Sequence, index: int) -> Any:
    """Returns document `index`. Raises InputError if it cannot be read, for example because its file is damaged."""
    try:
        return documents[index]
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        raise InputError(f"cannot be read: {one_line(error)}") from error


def read_each(documents: Sequence, function: Callable[[Any], Any], indices: Iterable[int] | None = None) -> list[Any]:
    """Applies a function to each document, or only to the documents with the given indices, and returns the list of
    results. Error messages contain the origin of the document.
    """
    found = []
    for index in range(len(documents)) if indices is None else indices:
        with located(documents, index):
            found.append(function(record(documents, index)))
    return found


def scanned(documents: Sequence, most: int, start: int = 0) -> Iterator[range]:
    """Yields ranges of the indices of documents that are checked before training: up to `most` evenly spaced documents
    of each source in a mixture, or of the only source.

    Only sequences with the attribute `scan` are checked, because their documents are cheap to read. Plain text files
    are not checked: if a file can be opened, all its documents are texts.

    Args:
      documents: opened source.
      most: maximum number of documents per source.
      start: number that is added to all indices. Used for the sources of a mixture.
    """
    if isinstance(documents, Mixed):
        for part, part_start in zip(documents.parts, documents.starts[:-1], strict=True):
            yield from scanned(part, most, start + int(part_start))
    elif getattr(documents, "scan", False):
        yield range(start, start + len(documents), 1 + (len(documents) - 1) // most)


def components(documents: Sequence, name: str, start: int = 0) -> Iterator[tuple[str, range]]:
    """Yields (name, index range) for each source in a mixture, including the sources of nested mixtures.

    Args:
      documents: opened source or mixture.
      name: name of `documents`. If it is not a mixture, this name and its range are the only pair.
      start: number that is added to all indices.
    """
    if not isinstance(documents, Mixed):
        yield name, range(start, start + len(documents))
        return
    for part, part_name, part_start in zip(documents.parts, documents.names, documents.starts[:-1], strict=True):
        yield from components(part, part_name, start + int(part_start))


def parts(documents: Sequence) -> Iterator[Sequence]:
    """Yields the opened sources in a mixture, including those of nested mixtures, in the order of `components`. If
    `documents` is not a mixture, yields only `documents`.
    """
    if not isinstance(documents, Mixed):
        yield documents
        return
    for part in documents.parts:
        yield from parts(part)


def random_index(documents: Sequence, rng: np.random.Generator) -> int:
    """Returns the index of a random document. For a mixture, first draws one of its sources by weight."""
    if not isinstance(documents, Mixed):
        return int(rng.integers(len(documents)))
    part = int(np.searchsorted(documents.thresholds, rng.random(), side="right"))
    part = min(part, len(documents.parts) - 1)
    return int(documents.starts[part]) + random_index(documents.parts[part], rng)


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_decode(item) for item in value]
    return value
