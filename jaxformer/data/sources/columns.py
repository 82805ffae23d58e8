"""The values of an example's columns, checked; and a text as sentences and words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import FieldError, InputError, shown

_SURROGATE = re.compile("[\ud800-\udfff]")
# An end of sentence: punctuation, closing quotes, a space, and no small letter after it. Titles and
# initials before a full stop do not end one. East Asian full stops need no space.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|vs)\.)(?<!\b(?:Mrs|Rev|etc)\.)(?<!\b(?:Prof)\.)"
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’»)\]]))\s+(?=[^a-zà-öø-ÿ\s])|(?<=[。！？])(?=[^”’」』）])"
)
_TEXT = "data.task.column"


def value(example: Mapping[str, Any], column: str, path: str) -> Any:
    """The value of a column; `path` is the config field that names the column.

    Raises:
      FieldError: there is no such column.
    """
    if column not in example:
        raise FieldError(path, f"={column!r}: no such column; the columns are {_names(example)}")
    return example[column]


def items(example: Mapping[str, Any], column: str, path: str) -> list[Any]:
    """The items of a column that holds a list or an array; arguments and errors as those of `value`."""
    found = value(example, column, path)
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, list | tuple):
        raise _wrong_type(example, column, path, "a list")
    return list(found)


def strings(example: Mapping[str, Any], column: str, path: str) -> list[str]:
    """The texts of a column that holds a list of texts; arguments and errors as those of `value`."""
    found = items(example, column, path)
    for number, item in enumerate(found):
        check_text(item, f"item {number} of column {column!r}")
    return found


def text(example: Mapping[str, Any], column: str | None = None, path: str = _TEXT) -> str:
    """The text of an example, stripped; the sentences of a list are joined by newlines.

    Args:
      example: columns by name.
      column: column that holds a str or a list of str; None takes `sentences` or `text`.
      path: the config field that names the column, for messages.

    Raises:
      InputError: there is no such column, or it holds no text.
    """
    found = _text_column(example, column, path)
    return (found if isinstance(found, str) else "\n".join(found)).strip()


def sentences(example: Mapping[str, Any], column: str | None = None, path: str = _TEXT) -> list[str]:
    """The sentences of an example, none of them empty.

    A list is taken as it is, a text of several lines is split at its lines, and any other text by its punctuation.
    Arguments and errors as those of `text`.
    """
    found = _text_column(example, column, path)
    if isinstance(found, str):
        lines = found.splitlines()
        parts = lines if sum(map(bool, map(str.strip, lines))) > 1 else split_sentences(found)
    else:
        parts = found
    return [part for part in map(str.strip, parts) if part]


def split_sentences(text: str) -> list[str]:
    """Splits a text at the ends of its sentences: 'He came. "Why?" She left.' gives three."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text)) if part]


def first_words(text: str, count: int = 25) -> str:
    """The first words of a text, with one space between two."""
    return " ".join(text.split()[:count])


def with_blank(text: str, blank: str = "[MASK]") -> str:
    """The first ten words of a text, with `blank` instead of the middle one."""
    words = first_words(text, 10).split(" ")
    middle = len(words) // 2
    words[middle] = re.sub(r"\w+(\W\w+)*", blank, words[middle], count=1) if words[middle].strip(".,;:!?") else blank
    return " ".join(words)


def check_text(value: Any, name: str) -> None:
    """Raises InputError if a value is not a text of Unicode characters; `name` is its name in the message."""
    if not isinstance(value, str):
        raise InputError(f"{name} holds {shown(value)}; expected a text")
    if found := _SURROGATE.search(value):
        raise InputError(
            f"{name} has half a character, {ascii(found[0])[1:-1]}, at character {found.start()}, which is no Unicode "
            "text; write the whole character, or leave it out"
        )


def _text_column(example: Mapping[str, Any], column: str | None, path: str) -> str | Sequence[str]:
    key = next((key for key in ("sentences", "text") if key in example), None) if column is None else column
    if key is None:
        raise FieldError(path, f"=None: no column 'sentences' or 'text'; the columns are {_names(example)}")
    found = value(example, key, path)
    if isinstance(found, str):
        check_text(found, f"column {key!r}")
        return found
    if not isinstance(found, list | tuple):
        raise _wrong_type(example, key, path, "a text")
    for number, item in enumerate(found):
        check_text(item, f"item {number} of column {key!r}")
    return found


def _wrong_type(example: Mapping[str, Any], column: str, path: str, expected: str) -> FieldError:
    problem = f"the column holds {shown(example[column])}; expected {expected}; the columns are {_names(example)}"
    return FieldError(path, f"={column!r}: {problem}")


def _names(example: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, example)) or "none"
