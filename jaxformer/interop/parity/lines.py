"""The lines of a parity certificate: what was compared, how far the two sides are apart, and how far they may be."""

import dataclasses
import math

import numpy as np

from jaxformer.errors import InputError

LOGITS, LOSS, GRADIENTS, TIE = 2e-5, 1e-5, 1e-3, 1e-4
"""Tolerances: of logits against the largest of them (or 1), of the loss against itself (or 1), of gradients against
each tensor's largest, and of the logits of two tokens that are considered a tie, against the largest too."""


class Unreadable(InputError):
    """transformers cannot load a folder."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was compared."""

    what: str
    """Such as `logits`."""
    where: str
    """On which inputs."""
    measured: float
    """How far the two sides are apart."""
    tolerance: float
    """How far they may be."""
    note: str = ""
    """More for a reader."""

    @property
    def passed(self) -> bool:
        """Whether they are near enough; what is not a number is not."""
        return bool(self.measured <= self.tolerance)

    def __str__(self) -> str:
        more = f": {self.note}" if self.tolerance == 0 or not math.isfinite(self.measured) else ""
        return f"{self.what} ({self.where}) differ by {self.measured:.1e}, above {self.tolerance:.0e}{more}"


def compared(name: str, where: str, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray | None) -> Line:
    """The largest difference of an output where there are tokens, relative to the largest reference, or 1."""
    if ours.shape != theirs.shape:
        return Line(name, where, float("inf"), LOGITS, f"shapes {ours.shape} and {theirs.shape}")
    difference, size = _largest(ours - theirs, mask), max(1.0, _largest(theirs, mask))
    return Line(name, where, difference / size, LOGITS, f"{difference:.1e}, where they reach {size:.1f}")


def _largest(array: np.ndarray, mask: np.ndarray | None) -> float:
    """The largest magnitude where there are tokens."""
    real = mask > 0 if array.ndim == 3 and mask is not None else slice(None)
    return float(np.abs(array[real]).max())
