"""Answers of `predict` as values that JSON has."""

import dataclasses
from typing import Any

import numpy as np

PAIRS = {
    "labels": ("label", "probability"),
    "blanks": ("token", "probability"),
    "cosines": ("text", "cosine"),
}
"""Names for the two parts of each pair in a field."""
LAYOUT = ("shown",)
"""Fields that say how an answer is printed."""


def as_json(answer: Any) -> dict[str, Any]:
    """The fields of an answer: numbers as they are, vectors as lists, pairs as objects."""
    fields = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return {name: _plain(value, PAIRS.get(name)) for name, value in fields.items() if name not in LAYOUT}


def _plain(value: Any, pair: tuple[str, str] | None) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple) and pair and len(value) == 2 and isinstance(value[0], str):
        return dict(zip(pair, value, strict=True))
    return [_plain(item, pair) for item in value] if isinstance(value, tuple) else value
