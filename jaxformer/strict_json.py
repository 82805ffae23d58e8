"""JSON without `NaN` and `Infinity`. The JSON standard does not have them, so that not every parser can read them."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Converts a value to JSON, with null for numbers that are not finite. Same options as `json.dumps`."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the value None by NaN in a parsed JSON object of numbers, because `dumps` writes null for numbers that
    are not finite.
    """
    return {name: math.nan if value is None else value for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
