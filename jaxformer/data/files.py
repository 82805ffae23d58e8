"""Text and JSON files as random-access documents, and documents as sentences."""

import array
import glob
import gzip
import io
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxformer.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# An end of sentence: punctuation, closing quotes, a space, and no small letter after it. Titles and
# initials before a full stop do not end one. East Asian full stops need no space.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|vs)\.)(?<!\b(?:Mrs|Rev|etc)\.)(?<!\b(?:Prof)\.)"
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’»)\]]))\s+(?=[^a-zà-öø-ÿ\s])|(?<=[。！？])(?=[^”’」』）])"
)


def expand(patterns: Sequence[str]) -> list[str]:
    """Paths of the files that the globs match, sorted; each file once."""
    if isinstance(patterns, str) or not patterns:
        raise InputError(f"paths: {patterns!r}; give a tuple of at least one file or glob")
    found: dict[str, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        is_glob = glob.has_magic(pattern) and not os.path.exists(pattern)
        matches = sorted(glob.glob(pattern, recursive=True)) if is_glob else [pattern]
        matches = [path for path in matches if not is_glob or os.path.isfile(path)]
        if not matches:
            raise InputError(f"{pattern}: no file matches this glob")
        found.update(dict.fromkeys(matches))
    return list(found)


class _Pieces(Sequence):
    """Byte ranges of files, found once on opening and read when asked for."""

    def __init__(self):
        self.buffers: list[mmap.mmap | bytes] = []
        self.paths: list[str] = []
        self.files, self.starts, self.stops = (array.array("q") for _ in range(3))

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, stop: int) -> None:
        self.files.append(len(self.buffers) - 1)
        self.starts.append(start)
        self.stops.append(stop)

    def lines(self, path: str) -> Iterator[tuple[int, bytes, str]]:
        """(byte offset, bytes, text) of each line; the file becomes the one that `add` means."""
        buffer = read(path)
        self.buffers.append(buffer)
        self.paths.append(path)
        stream = io.BytesIO(buffer) if isinstance(buffer, bytes) else buffer
        offset = 0
        for line in iter(stream.readline, b""):
            skip = len(_BYTE_ORDER_MARK) if not offset and line.startswith(_BYTE_ORDER_MARK) else 0
            try:
                yield offset + skip, line[skip:], line[skip:].decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: not UTF-8 at byte {offset + skip + error.start}; convert the file to UTF-8"
                ) from error
            offset += len(line)

    def piece(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        buffer = self.buffers[self.files[index]]
        return buffer[self.starts[index] : self.stops[index]].decode()

    def check_not_empty(self, path: str, count_before: int) -> None:
        if len(self) == count_before:
            raise InputError(f"{path}: the file is empty; give a file with at least one document")


class TextDocuments(_Pieces):
    """Documents {"text": str} of plain text files, separated as `TextFiles.documents` says."""

    def __init__(self, paths: list[str], separator: str):
        super().__init__()
        for path in paths:
            before = len(self)
            start = stop = None
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
            self.check_not_empty(path, before)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.piece(index).strip()}


class JsonDocuments(_Pieces):
    """The objects of JSON-lines files."""

    def __init__(self, paths: list[str]):
        super().__init__()
        for path in paths:
            before = len(self)
            for number, (offset, line, text) in enumerate(self.lines(path), 1):
                if text.strip():
                    _check_object(path, number, text)
                    self.add(offset, offset + len(line))
            self.check_not_empty(path, before)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.piece(index))


class ParallelLines(Sequence):
    """{"inputs", "targets"} of two files, line by line, where neither line is empty."""

    def __init__(self, inputs: str, targets: str):
        self.sides = [_Lines(inputs), _Lines(targets)]
        counts = list(map(len, self.sides))
        if counts[0] != counts[1]:
            raise InputError(
                f"{inputs} has {counts[0]} lines, {targets} has {counts[1]}: line n of the one must belong to line n "
                "of the other"
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


class _Lines(_Pieces):
    """Every line of a file, empty ones too."""

    def __init__(self, path: str):
        super().__init__()
        self.blank = set()
        for number, (offset, line, text) in enumerate(self.lines(path)):
            self.add(offset, offset + len(line))
            if not text.strip():
                self.blank.add(number)

    def __getitem__(self, index: int) -> str:
        return self.piece(index).strip()


def _check_object(path: str, number: int, text: str) -> None:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InputError(f"{path}: line {number} is not valid JSON ({reason}); give one object a line") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line {number} is {type(value).__name__}, not an object; give one object a line")


def read(path: str) -> mmap.mmap | bytes:
    """The bytes of a file, mapped or, of a `.gz`, decompressed; InputError where they cannot be read."""
    try:
        if path.endswith(".gz"):
            with gzip.open(path) as file:
                return file.read()
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""  # an empty file cannot be mapped
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except EOFError as error:
        raise InputError(f"{path}: the gzip file is cut off; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a valid gzip file ({error}); fetch it again") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: {reason}; give the path of a readable file") from error


def sentences(example: dict[str, Any], column: str | None = None) -> list[str]:
    """The sentences of an example, none of them empty.

    Args:
        example: columns by name.
        column: which column holds a str or a list of str; None takes `sentences` or `text`.

    Returns:
        A list as it stands; a text of several lines by line; any other text by punctuation.

    Raises:
        InputError: no such column (the message names those that exist), or it holds no text.
    """
    value = _column(example, column, "the task's `column`")
    if isinstance(value, str):
        lines = value.splitlines()
        parts = lines if sum(map(bool, map(str.strip, lines))) > 1 else split_sentences(value)
    else:
        parts = value
    return [part for part in map(str.strip, parts) if part]


def text(example: dict[str, Any], column: str | None = None, field: str = "task.column") -> str:
    """The text of an example as it stands, stripped; of a list of sentences one a line.

    Args:
        example: columns by name.
        column: which column holds a str or a list of str; None takes `sentences` or `text`.
        field: the field that says which; for a message.

    Raises:
        InputError: no such column (the message names those that exist), or it holds no text.
    """
    value = _column(example, column, f"{field} to one that holds text")
    return (value if isinstance(value, str) else "\n".join(value)).strip()


def first_words(text: str, count: int = 25) -> str:
    """The first words of a text, with one space between two."""
    return " ".join(text.split()[:count])


def value(example: Mapping[str, Any], column: str, field: str) -> Any:
    """What an example has in a column that `field` names; InputError where it has none such."""
    if column not in example:
        there = ", ".join(map(repr, example))
        raise InputError(f"an example has no column {column!r}; it has {there}: set {field}")
    return example[column]


def _column(example: dict[str, Any], column: str | None, advice: str) -> str | Sequence[str]:
    keys = ("sentences", "text") if column is None else (column,)
    value = next((example[key] for key in keys if key in example), None)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return value
    wanted = " or ".join(map(repr, keys))
    there = ", ".join(map(repr, example))
    raise InputError(f"a document has no column {wanted} of text; it has {there}: set {advice}")


def split_sentences(text: str) -> list[str]:
    """Splits at the ends of sentences: 'He came. "Why?" She left.' gives three."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text)) if part]
