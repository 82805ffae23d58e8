"""Sources of labeled texts: CSV files, TSV files, and folders of text files with one folder per class."""

import array
import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer import storage
from jaxformer.data.messages import Problems
from jaxformer.data.sources import files
from jaxformer.data.sources.sources import Source
from jaxformer.errors import FieldError, InputError, shown

_DELIMITERS = (",", ";", "\t", "|")


@dataclasses.dataclass(frozen=True)
class Csv(Source):
    """Source of examples in CSV files (comma-separated values), quoted as in RFC 4180. All rows are kept in memory."""

    paths: tuple[str, ...] = ()
    """Paths or glob patterns of the files. Files that end in `.gz` are decompressed."""
    columns: tuple[str, ...] | None = None
    """Column names. If None, the first row of each file contains them."""
    delimiter: str = ","
    """Character that separates values, such as ; or |."""
    encoding: str = "utf-8"
    """Python name of the file encoding: utf-8, latin-1, cp1252, utf-16."""

    def __post_init__(self):
        files.check_encoding(self.encoding)
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise FieldError("data.train.delimiter", f"={self.delimiter!r}: expected one character, such as ; or |")

    def open(self) -> Sequence[dict[str, Any]]:
        return Table(self.paths, self.columns, self.delimiter, True, self.encoding)


@dataclasses.dataclass(frozen=True)
class Tsv(Source):
    """Source of examples in TSV files (tab-separated values). All rows are kept in memory."""

    paths: tuple[str, ...] = ()
    """Paths or glob patterns of the files. Files that end in `.gz` are decompressed."""
    columns: tuple[str, ...] | None = None
    """Column names. If None, the first row of each file contains them."""
    quoted: bool = False
    """Whether values may be quoted. If False, quotation marks are part of the text, as in GLUE files."""
    encoding: str = "utf-8"
    """Python name of the file encoding, such as utf-8 or latin-1."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return Table(self.paths, self.columns, "\t", self.quoted, self.encoding)


@dataclasses.dataclass(frozen=True)
class ClassFolders(Source):
    """Source of labeled texts, with one folder per class and one text file per example.

    An example is {"text": content of the file, "label": name of the folder}. The IMDb reviews and the 20 Newsgroups
    articles (encoded in latin-1) have this layout.
    """

    path: str
    """Path of the folder that contains the class folders."""
    encoding: str = "utf-8"
    """Python name of the file encoding, such as utf-8 or latin-1."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return _FolderDocuments(os.path.expanduser(self.path), self.encoding)


class _FolderDocuments(Sequence):
    scan = True

    def __init__(self, path: str, encoding: str):
        self.encoding = encoding
        found = list(_class_objects(path) if storage.is_remote(path) else _class_files(path))
        if not found:
            raise InputError(f"{path}: expected a folder for each class with text files in it; there are none")
        empty = [file for file, _, size in found if not size]
        files.check_not_empty([file for file, *_ in found], empty)
        skipped = set(empty)
        self.documents = [(file, label) for file, label, _ in found if file not in skipped]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.documents[index]
        return {"text": files.decoded(path, self.encoding).strip(), "label": label}

    def place(self, index: int) -> str:
        """Returns the path of the file of example `index`, for error messages."""
        return self.documents[index][0]


def _class_files(path: str) -> Iterator[tuple[str, str, int]]:
    """Lists the files in a local folder that has one subfolder per class. Yields (path, class name, size in bytes)."""
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such folder; expected one with a folder for each class")
    for label in sorted(os.listdir(path)):
        folder = os.path.join(path, label)
        if os.path.isdir(folder) and not label.startswith("."):
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            files_there = filter(os.path.isfile, (os.path.join(folder, name) for name in names))
            yield from ((file, label, os.path.getsize(file)) for file in files_there)


def _class_objects(path: str) -> Iterator[tuple[str, str, int]]:
    """Lists the objects in a bucket folder with one subfolder per class. Yields (path, class name, size in bytes)."""
    for key, info in storage.objects_below(path).items():
        label, _, name = key.partition("/")
        if name and "/" not in name and not label.startswith(".") and not name.startswith("."):
            yield f"{path.rstrip('/')}/{key}", label, info["size"]


class Table(Sequence):
    """Sequence of the rows of CSV or TSV files. Each row is a dict that maps column names to texts."""

    scan = True

    def __init__(
        self, paths: Sequence[str], columns: Sequence[str] | None, delimiter: str, quoted: bool, encoding: str
    ):
        self.paths = files.expand(paths)
        self.rows: list[dict[str, str]] = []
        self.files, self.lines = array.array("q"), array.array("q")
        empty, problems = [], Problems()
        for number, path in enumerate(self.paths):
            before = len(self.rows) + problems.count
            for line, row in _rows(path, columns, delimiter, quoted, encoding, problems):
                self.rows.append(row)
                self.files.append(number)
                self.lines.append(line)
            empty += [path] if len(self.rows) + problems.count == before else []
        problems.check()
        if len(empty) == len(self.paths):
            raise InputError(f"{empty[0]}: has no rows; give a file with at least one")
        files.check_not_empty(self.paths, empty, "row")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self.rows[index]

    def contents(self) -> Iterator[tuple[str, Any]]:
        """Yields (path, content) for each file. Fingerprints of the data are computed from the contents."""
        for path in self.paths:
            yield path, files.read_bytes(path)

    def place(self, index: int) -> str:
        """Returns the file of row `index` and the number of the row's first line, for error messages."""
        return f"{self.paths[self.files[index]]}: line {self.lines[index]}"


def _rows(
    path: str, columns: Sequence[str] | None, delimiter: str, quoted: bool, encoding: str, problems: Problems
) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a CSV or TSV file. Yields (line number, row) pairs, where a row is a dict that maps column names to texts.
    Rows with the wrong number of values are added to `problems` instead.

    Args:
      path: path of the file.
      columns: column names. If None, they are read from the first row.
      delimiter: character that separates values.
      quoted: whether values may be quoted.
      encoding: Python name of the file encoding.
      problems: collects descriptions of wrong rows.
    """
    csv.field_size_limit(2**31 - 1)  # A text may be longer than the default limit of the csv module.
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    text = io.StringIO(files.decoded(path, encoding), newline="")
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        stop = 0
        for values in reader:
            line, stop = stop + 1, reader.line_num
            if not values:
                continue
            if columns is None:
                columns = _header(path, values, delimiter)
            elif len(values) == len(columns):
                yield line, dict(zip(columns, values, strict=True))
            else:
                problems.add(
                    f"{path}: line {line} has {len(values)} values; expected {len(columns)}: "
                    + " ".join(", ".join(columns).split())
                )
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error


def _header(path: str, values: Sequence[str], delimiter: str) -> list[str]:
    """Returns the column names, given the values of the first row of a table. Raises InputError if a name occurs twice,
    or if the delimiter seems to be wrong.
    """
    names = [value.strip() for value in values]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: its first row contains a column name twice; set columns")
    other = next((mark for mark in _DELIMITERS if mark != delimiter and mark in names[0]), None) if names else None
    if other and len(names) == 1:
        raise InputError(
            f"{path}: its first row has no {delimiter!r}, and {other!r} in {shown(names[0])}; "
            f"{'use Tsv' if other == chr(9) else f'set delimiter to {other!r}'}, or set columns"
        )
    return names
