"""Entries of a parity certificate: each states a compared quantity, the measured difference and the tolerance."""

import dataclasses
import math

import numpy as np

from jaxformer.errors import InputError

LOGITS, LOSS, GRADIENTS, TIE = 2e-5, 1e-5, 1e-3, 1e-4
"""Tolerances: for logits relative to the largest logit (or 1); for the loss relative to itself (or 1); for gradients
relative to the largest value of each tensor; and for ties between the logits of two tokens, relative to the largest
logit (or 1).
"""


class Unreadable(InputError):
    """Raised if transformers cannot load a folder."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Entry of a parity certificate: the result of one comparison."""

    what: str
    """Name of the compared quantity, such as `logits`."""
    where: str
    """Description of the inputs for which the quantity was compared."""
    measured: float
    """Largest difference between the JAX model and the PyTorch model."""
    tolerance: float
    """Maximum difference for which the comparison passes."""
    note: str = ""
    """Additional information about the result."""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance. False if it is NaN."""
        return bool(self.measured <= self.tolerance)

    def __str__(self) -> str:
        more = f": {self.note}" if self.tolerance == 0 or not math.isfinite(self.measured) else ""
        return f"{self.what} ({self.where}) differ by {self.measured:.1e}, above {self.tolerance:.0e}{more}"


def compared(name: str, where: str, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray | None) -> Line:
    """Compares an output of both models at all tokens. Returns an entry of the certificate.

    The difference is the largest one, relative to the largest reference value (or 1).

    Args:
      name: name of the output.
      where: description of the inputs.
      ours: output of the JAX model.
      theirs: output of the PyTorch model, which is the reference.
      mask: 1 for tokens to compare. If None, all.
    """
    if ours.shape != theirs.shape:
        return Line(name, where, float("inf"), LOGITS, f"shapes {ours.shape} and {theirs.shape}")
    difference, size = _largest(ours - theirs, mask), max(1.0, _largest(theirs, mask))
    return Line(name, where, difference / size, LOGITS, f"{difference:.1e}, where they reach {size:.1f}")


def _largest(array: np.ndarray, mask: np.ndarray | None) -> float:
    """Returns the largest absolute value at tokens whose mask is above 0."""
    real = mask > 0 if array.ndim == 3 and mask is not None else slice(None)
    return float(np.abs(array[real]).max())
