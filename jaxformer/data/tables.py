"""Sources of labelled texts as people keep them: comma- or tab-separated values, and a folder for each class."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer.data import files
from jaxformer.data.sources import Source
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Csv(Source):
    """Comma-separated values in UTF-8, with quotes as RFC 4180 has them; all rows are held in memory."""

    paths: tuple[str, ...] = ()
    """Files or globs; `.gz` is decompressed."""
    columns: tuple[str, ...] | None = None
    """Names of the columns; None: the first row of each file has them."""

    def open(self) -> Sequence[dict[str, Any]]:
        return _read_tables(self.paths, self.columns, ",", quoted=True)


@dataclasses.dataclass(frozen=True)
class Tsv(Source):
    """Tab-separated values in UTF-8; all rows are held in memory."""

    paths: tuple[str, ...] = ()
    """Files or globs; `.gz` is decompressed."""
    columns: tuple[str, ...] | None = None
    """Names of the columns; None: the first row of each file has them."""
    quoted: bool = False
    """Whether a value may stand in quotes; GLUE's files have quotes that are but text."""

    def open(self) -> Sequence[dict[str, Any]]:
        return _read_tables(self.paths, self.columns, "\t", self.quoted)


@dataclasses.dataclass(frozen=True)
class ClassFolders(Source):
    """A folder for each class, with a text file in UTF-8 for each example: {"text", "label"}, the folder's name.

    So IMDb's reviews lie, and 20 Newsgroups'.
    """

    path: str
    """The folder that holds those of the classes."""

    def open(self) -> Sequence[dict[str, Any]]:
        return _FolderDocuments(os.path.expanduser(self.path))


class _FolderDocuments(Sequence):
    def __init__(self, path: str):
        if not os.path.isdir(path):
            raise InputError(f"{path}: no such folder; expected one with a folder for each class")
        self.documents: list[tuple[str, str]] = []
        for label in sorted(os.listdir(path)):
            folder = os.path.join(path, label)
            if os.path.isdir(folder) and not label.startswith("."):
                names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
                found = [os.path.join(folder, name) for name in names]
                self.documents += [(file, label) for file in found if os.path.isfile(file)]
        if not self.documents:
            raise InputError(f"{path}: expected a folder for each class with text files in it; there are none")

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.documents[index]
        return {"text": _decoded(path).strip(), "label": label}


def _read_tables(
    paths: Sequence[str], columns: Sequence[str] | None, delimiter: str, quoted: bool
) -> list[dict[str, str]]:
    rows = []
    for path in files.expand(paths):
        before = len(rows)
        rows += _rows(path, columns, delimiter, quoted)
        if len(rows) == before:
            raise InputError(f"{path}: has no rows; give a file with at least one")
    return rows


def _rows(path: str, columns: Sequence[str] | None, delimiter: str, quoted: bool) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # A text may be longer than what the module expects of a value.
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for values in reader:
            if columns is None:
                columns = values
                if len(set(columns)) < len(columns):
                    raise InputError(f"{path}: its first row names a column twice; set columns")
            elif values:
                if len(values) != len(columns):
                    raise InputError(
                        f"{path}: line {reader.line_num} has {len(values)} values; expected {len(columns)}: "
                        f"{', '.join(columns)}"
                    )
                yield dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error


def _decoded(path: str) -> str:
    content = bytes(files.read(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error
