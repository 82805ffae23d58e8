"""Functions that read a column of an example and check its type, and functions that split a text into sentences and
words.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import FieldError, InputError, shown

_SURROGATE = re.compile("[\ud800-\udfff]")
# End of a sentence: punctuation, closing quotation marks, and white space that is not followed by a lower-case letter.
# A full stop after a title or an initial does not end a sentence. East Asian full stops need no space.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|vs)\.)(?<!\b(?:Mrs|Rev|etc)\.)(?<!\b(?:Prof)\.)"
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’»)\]]))\s+(?=[^a-zà-öø-ÿ\s])|(?<=[。！？])(?=[^”’」』）])"
)
_TEXT = "data.task.column"


def value(example: Mapping[str, Any], column: str, path: str) -> Any:
    """Returns the value of a column.

    Args:
      example: maps column names to values.
      column: name of the column.
      path: path of the config field that names the column, such as `data.task.label`, for error messages.

    Raises:
      FieldError: If the column does not exist.
    """
    if column not in example:
        raise FieldError(path, f"={column!r}: no such column; the columns are {_names(example)}")
    return example[column]


def items(example: Mapping[str, Any], column: str, path: str) -> list[Any]:
    """Returns the items of a column that contains a list or an array. Same arguments and errors as `value`."""
    found = value(example, column, path)
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, list | tuple):
        raise _wrong_type(example, column, path, "a list")
    return list(found)


def strings(example: Mapping[str, Any], column: str, path: str) -> list[str]:
    """Returns the texts of a column that contains a list of texts. Same arguments and errors as `value`."""
    found = items(example, column, path)
    for number, item in enumerate(found):
        check_text(item, f"item {number} of column {column!r}")
    return found


def text(example: Mapping[str, Any], column: str | None = None, path: str = _TEXT) -> str:
    """Returns the text of an example without surrounding white space. A list of sentences is joined by newlines.

    Args:
      example: maps column names to values.
      column: name of a column that contains a str or a list of str. If None, the column `sentences` or `text` is used.
      path: path of the config field that names the column, for error messages.

    Raises:
      InputError: If the column does not exist or does not contain text.
    """
    found = _text_column(example, column, path)
    return (found if isinstance(found, str) else "\n".join(found)).strip()


def sentences(example: Mapping[str, Any], column: str | None = None, path: str = _TEXT) -> list[str]:
    """Returns the non-empty sentences of an example.

    A column that contains a list is taken to be a list of sentences. A text with several lines is split into its lines,
    and any other text at its punctuation. Same arguments and errors as `text`.
    """
    found = _text_column(example, column, path)
    if isinstance(found, str):
        lines = found.splitlines()
        parts = lines if sum(map(bool, map(str.strip, lines))) > 1 else split_sentences(found)
    else:
        parts = found
    return [part for part in map(str.strip, parts) if part]


def split_sentences(text: str) -> list[str]:
    """Splits a text at the ends of its sentences: 'He came. "Why?" She left.' gives three sentences."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text)) if part]


def first_words(text: str, count: int = 25) -> str:
    """Returns the first `count` words of a text, separated by single spaces."""
    return " ".join(text.split()[:count])


def with_blank(text: str, blank: str = "[MASK]") -> str:
    """Returns the first ten words of a text, with the middle word replaced by `blank`, as an example input for the
    `predict` command.
    """
    words = first_words(text, 10).split(" ")
    middle = len(words) // 2
    words[middle] = re.sub(r"\w+(\W\w+)*", blank, words[middle], count=1) if words[middle].strip(".,;:!?") else blank
    return " ".join(words)


def check_text(value: Any, name: str) -> None:
    """Raises InputError if a value is not a str, or contains a surrogate (half of a UTF-16 pair), which cannot be
    encoded.

    `name` is the name of the value in the error message.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} holds {shown(value)}; expected a text")
    if found := _SURROGATE.search(value):
        raise InputError(
            f"{name} contains {ascii(found[0])[1:-1]} at character {found.start()}, half of a surrogate pair, which is "
            "not valid Unicode; write the whole character, or leave it out"
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
