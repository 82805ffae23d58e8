"""Compares two configs field by field."""

import dataclasses
from typing import Any

from jaxformer import fields


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field whose values differ between two configs."""

    path: str
    """Dotted path of the field."""
    before: Any
    """Value of the field in the first config."""
    now: Any
    """Value of the field in the second config."""

    def describe(self, before: str, now: str) -> str:
        """Returns one line with both values. `before` and `now` say where the values come from, such as
        `in the run`.
        """
        return f"{self.path}: {fields.show(self.before)} {before}, {fields.show(self.now)} {now}"

    def within(self, *paths: str) -> bool:
        """Returns whether the field has one of the given dotted paths, or is inside a value at one of them."""
        return any(self.path == path or self.path.startswith(f"{path}.") for path in paths)

    def __str__(self) -> str:
        return self.describe("in the run", "now")


def differences(before: Any, now: Any, path: str = "") -> list[Difference]:
    """Returns the fields in which two configs differ.

    Args:
      before: an experiment, or a part of one.
      now: the config to compare it with.
      path: dotted path of both configs within the experiment. The paths in the result begin with it.
    """
    if before == now:
        return []
    parts, others = fields.children(before), fields.children(now)
    if type(before) is not type(now) or len(parts) != len(others) or not parts:
        return [Difference(path or "experiment", before, now)]
    found = []
    for (name, _, a), (_, _, b) in zip(parts, others, strict=True):
        found += differences(a, b, fields.join(path, name))
    return found
