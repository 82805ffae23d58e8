"""Sequences of documents in text files and JSON Lines files, with random access to each document."""

import array
import codecs
import contextlib
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer import storage
from jaxformer.data.messages import Problems, note, tolerated
from jaxformer.data.sources.file_bytes import FileBytes, check_regular, chunks
from jaxformer.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def expand(patterns: Sequence[str]) -> list[str]:
    """Returns the paths of the files that match the glob patterns, without duplicates. The files of each pattern are
    sorted by path. A pattern without wildcards is returned as a path.
    """
    if isinstance(patterns, str) or not patterns:
        raise InputError(f"paths: {patterns!r}; give a tuple of at least one file or glob")
    found: dict[str, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        is_glob = glob.has_magic(pattern) and not os.path.exists(pattern)
        matches = storage.matching(pattern) if is_glob else [pattern]
        if not matches:
            raise InputError(f"{pattern}: no file matches this glob")
        found.update(dict.fromkeys(matches))
    return list(found)


def check_encoding(encoding: str) -> None:
    """Raises InputError if Python does not support the text encoding."""
    try:
        "".encode(encoding)
    except LookupError:
        raise InputError(f"encoding {encoding!r}: not known; expected a name such as utf-8 or latin-1") from None


def check_not_empty(paths: Sequence[str], empty: Sequence[str], need: str = "document") -> None:
    """Raises InputError if all files are empty. Prints a note if only some files are empty.

    Args:
      paths: all files.
      empty: files that are empty.
      need: noun for the items that the files should contain, such as `row`, for the error message.
    """
    if not empty:
        return
    more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
    if len(empty) == len(paths):
        is_empty = "the files are empty" if more else "the file is empty"
        raise InputError(f"{empty[0]}{more}: {is_empty}; give a file with at least one {need}")
    note(f"{empty[0]}{more}: skipped, empty; {len(paths) - len(empty)} of {len(paths)} files are read")


class _ByteRangeDocuments(Sequence):
    """Sequence of documents that are byte ranges of files. The ranges are found when a file is opened, and the bytes of
    a document are read when it is requested.
    """

    def __init__(self, encoding: str = "utf-8"):
        self.encoding, self.undecodable = encoding, Problems()
        self.buffers: list[FileBytes | bytes] = []
        self.paths: list[str] = []
        self.files, self.starts, self.stops = (array.array("q") for _ in range(3))

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, stop: int) -> None:
        self.files.append(len(self.buffers) - 1)
        self.starts.append(start)
        self.stops.append(stop)

    def lines(self, path: str) -> Iterator[tuple[int, bytes, str]]:
        """Opens a file, and yields (byte offset, bytes, text) for each of its lines. Ranges that are added with `add`
        after this call refer to this file.
        """
        buffer = read(path, self.encoding)
        self.buffers.append(buffer)
        self.paths.append(path)
        offset = 0
        for number, line in enumerate(io.BytesIO(buffer) if isinstance(buffer, bytes) else buffer.lines(), 1):
            skip = len(_BYTE_ORDER_MARK) if not offset and line.startswith(_BYTE_ORDER_MARK) else 0
            try:
                text = line[skip:].decode()
            except UnicodeDecodeError as error:
                problem = _undecodable(path, "utf-8", offset + skip + error.start, number)
                if not tolerated():
                    raise problem from error
                self.undecodable.add(str(problem))
                text = line[skip:].decode(errors="replace")
            yield offset + skip, line[skip:], text
            offset += len(line)

    def contents(self) -> Iterator[tuple[str, FileBytes | bytes]]:
        """Yields (path, content) for each file. Fingerprints of the data are computed from the contents."""
        yield from zip(self.paths, self.buffers, strict=True)

    def text_of(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        buffer = self.buffers[self.files[index]]
        return buffer[self.starts[index] : self.stops[index]].decode()

    def place(self, index: int) -> str:
        """Returns the file of document `index` and the number of the document's first line, for error messages. If the
        lines before it can no longer be read, returns the byte at which it begins instead.
        """
        file, start = self.files[index], self.starts[index]
        number = _line_number(self.buffers[file], start)
        return f"{self.paths[file]}: {f'byte {start:,}' if number is None else f'line {number}'}"


class TextDocuments(_ByteRangeDocuments):
    """Sequence of the documents in plain text files, each a dict {"text": str}. A document is one line (`separator` is
    `line`), a block of lines between blank lines (`blank_line`), or a whole file (`file`).
    """

    def __init__(self, paths: list[str], separator: str, encoding: str = "utf-8"):
        super().__init__(encoding)
        empty = []
        for path in paths:
            before = len(self)
            start, stop = None, 0
            for offset, line, text in self.lines(path):
                blank = not text.strip()
                if not blank:
                    start, stop = (offset if start is None else start), offset + len(line)
                ends = separator == "line" or (separator == "blank_line" and blank)
                if ends and start is not None:
                    self.add(start, stop)
                    start = None
            if start is not None:
                self.add(start, stop)
            empty += [path] if len(self) == before else []
        self.undecodable.check()
        check_not_empty(paths, empty)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.text_of(index).strip()}


class JsonDocuments(_ByteRangeDocuments):
    """Sequence of the JSON objects in JSON Lines files, each a dict that maps column names to values."""

    scan = True

    def __init__(self, paths: list[str], encoding: str = "utf-8"):
        super().__init__(encoding)
        empty, problems = [], Problems("expected one object per line")
        for path in paths:
            blank = True
            for number, (offset, line, text) in enumerate(self.lines(path), 1):
                if not text.strip():
                    continue
                blank = False
                if problem := _no_object(text):
                    problems.add(f"{path}: line {number} {problem}")
                self.add(offset, offset + len(line))
            empty += [path] if blank else []
        self.undecodable.check()
        problems.check()
        check_not_empty(paths, empty)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.text_of(index))


class ParallelLines(Sequence):
    """Sequence of text pairs {"inputs": str, "targets": str}: line n of one file, and line n of another. Pairs with an
    empty line are skipped.
    """

    def __init__(self, inputs: str, targets: str, encoding: str = "utf-8"):
        self.sides = [_Lines(inputs, encoding), _Lines(targets, encoding)]
        counts = list(map(len, self.sides))
        if counts[0] != counts[1]:
            raise InputError(
                f"{inputs} has {counts[0]} lines, {targets} has {counts[1]}: line n of one file must belong to "
                "line n of the other"
            )
        blank = self.sides[0].blank | self.sides[1].blank
        self.numbers = array.array("q", (number for number in range(counts[0]) if number not in blank))
        if not self.numbers:
            raise InputError(
                f"{inputs} and {targets}: no line has text in both files; give files with at least one pair"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.numbers[index]
        return {key: side[number] for key, side in zip(("inputs", "targets"), self.sides, strict=True)}

    def contents(self) -> Iterator[tuple[str, FileBytes | bytes]]:
        """Yields (path, content) for both files. Fingerprints of the data are computed from the contents."""
        for side in self.sides:
            yield from side.contents()

    def place(self, index: int) -> str:
        """Returns the file and line number of the input text of pair `index`, for error messages. The target text is on
        the same line of the other file.
        """
        return self.sides[0].place(self.numbers[index])


class _Lines(_ByteRangeDocuments):
    """Sequence of all lines of a file, including empty lines. The line numbers of empty lines, from 0, are in the set
    `blank`.
    """

    def __init__(self, path: str, encoding: str):
        super().__init__(encoding)
        self.blank = set()
        for number, (offset, line, text) in enumerate(self.lines(path)):
            self.add(offset, offset + len(line))
            if not text.strip():
                self.blank.add(number)
        self.undecodable.check()

    def __getitem__(self, index: int) -> str:
        return self.text_of(index).strip()


def _no_object(text: str) -> str:
    """Returns a description of what is wrong with a line that should contain a JSON object, such as "is list, not an
    object". Empty if the line is valid.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = {json.JSONDecodeError: getattr(error, "msg", ""), RecursionError: "nested too deeply"}
        return f"is not valid JSON ({reason.get(type(error)) or error})"
    return "" if isinstance(value, dict) else f"is {type(value).__name__}, not an object"


def _line_number(buffer: FileBytes | bytes, offset: int) -> int | None:
    """Returns the number, counted from 1, of the line that begins at a byte offset. None if the bytes before it can no
    longer be read.
    """
    number, done = 1, 0
    with contextlib.suppress(InputError):
        for chunk in chunks(buffer):
            number += chunk[: offset - done].count(b"\n")
            done += len(chunk)
            if done >= offset:
                return number
    return number if not offset else None


def _undecodable(path: str, encoding: str, offset: int, line: int | None = None) -> InputError:
    name = "UTF-8" if encoding.lower().startswith("utf-8") else encoding
    where = "" if line is None else f" (line {line})"
    return InputError(f"{path}: not {name} at byte {offset}{where}; set encoding to the file's own, such as latin-1")


def decoded(path: str, encoding: str = "utf-8") -> str:
    """Returns the decoded text of a file, without its byte order mark. Raises InputError if the file cannot be read or
    decoded.
    """
    content = bytes(read_bytes(path))
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, error.start, content.count(b"\n", 0, error.start) + 1) from error


def read(path: str, encoding: str = "utf-8") -> FileBytes | bytes:
    """Returns the content of a text file, converted to UTF-8 bytes.

    Compressed files, and files in another encoding than UTF-8, are read into memory. Other files stay open, and are
    read when their bytes are requested.
    """
    if codecs.lookup(encoding).name == "utf-8":
        return read_bytes(path)
    return decoded(path, encoding).encode()


def read_bytes(path: str) -> FileBytes | bytes:
    """Returns the bytes of a file, which are read when they are requested. A `.gz` file is decompressed into memory.

    An object in a bucket is copied to this machine first (`storage.local_copy`).

    Raises:
      InputError: If the file cannot be read.
    """
    try:
        path = storage.local_copy(path)
        if path.endswith(".gz"):
            check_regular(path)
            with gzip.open(path) as file:
                return file.read()
        return FileBytes(path)
    except EOFError as error:
        raise InputError(f"{path}: the gzip file is cut off; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a valid gzip file ({error}); fetch it again") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: {reason}; give the path of a readable file") from error
