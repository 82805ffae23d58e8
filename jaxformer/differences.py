"""Finds the fields in which two configs differ."""

import dataclasses
from typing import Any

from jaxformer import fields


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field whose values differ between two configs."""

    path: str
    """Dotted path of the field, such as `model.depth`."""
    before: Any
    """Value of the field in the first config."""
    now: Any
    """Value of the field in the second config."""

    def describe(self, before: str, now: str) -> str:
        """Returns one line with the path and both values of the field.

        Args:
          before: text after the first value that says where it comes from, such as `in the run`.
          now: text after the second value that says where it comes from.
        """
        return f"{self.path}: {fields.show(self.before)} {before}, {fields.show(self.now)} {now}"

    def within(self, *paths: str) -> bool:
        """Returns whether the path of the field equals one of the given dotted paths, or is below one of them."""
        return any(self.path == path or self.path.startswith(f"{path}.") for path in paths)

    def __str__(self) -> str:
        return self.describe("in the run", "now")


def differences(before: Any, now: Any, path: str = "") -> list[Difference]:
    """Returns the fields in which two configs differ.

    Args:
      before: first config: an experiment, or a value of one of its fields.
      now: second config, of the same kind.
      path: dotted path of the configs within the experiment, which the paths in the result begin with. Empty for an
        experiment.
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
