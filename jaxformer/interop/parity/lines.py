"""Entries of a parity certificate, which records how a JAX model compares with its PyTorch counterpart. Each entry
states a compared quantity, the measured difference and the tolerance.
"""

import dataclasses
import math

import numpy as np

from jaxformer.errors import InputError

LOGITS, LOSS, GRADIENTS, TIE = 2e-5, 1e-5, 1e-3, 1e-4
"""Tolerances for the differences between the JAX model (ours) and the PyTorch model (theirs). Logits: max |ours -
theirs| / max(1, max |theirs|). Loss: |ours - theirs| / max(1, |theirs|). Gradients: max |ours - theirs| / scale of the
tensor's gradient. Ties in greedy decoding: gap between the logits of two tokens / max(1, max |theirs|).
"""


class Unreadable(InputError):
    """Raised if the transformers library cannot load a Hugging Face folder."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Entry of a parity certificate: the result of comparing one quantity of the JAX model and the PyTorch model."""

    what: str
    """Name of the compared quantity, such as `logits`."""
    where: str
    """Description of the inputs for which the quantity was compared, such as `padded, 3 × 16`."""
    measured: float
    """Difference between the JAX model and the PyTorch model, usually relative to the size of the values. For tokens,
    the number of inputs for which they differ.
    """
    tolerance: float
    """Largest value of `measured` with which the comparison passes."""
    note: str = ""
    """Additional information about the result, such as the name of the tensor that differs most."""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance. False if it is NaN."""
        return bool(self.measured <= self.tolerance)

    def __str__(self) -> str:
        more = f": {self.note}" if self.tolerance == 0 or not math.isfinite(self.measured) else ""
        return f"{self.what} ({self.where}) differ by {self.measured:.1e}, above {self.tolerance:.0e}{more}"


def compared(name: str, where: str, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray | None) -> Line:
    """Compares an output of the JAX model with that of the PyTorch model. Returns an entry of the parity certificate.

    The measured difference is max |ours - theirs| / max(1, max |theirs|).

    Args:
      name: Name of the output, such as `logits`.
      where: Description of the inputs.
      ours: Output of the JAX model.
      theirs: Output of the PyTorch model, which is the reference.
      mask: 1 for tokens to compare, 0 for others, [batch, length]. If None, or if the output is not [batch, length,
        ...] with 3 axes and this length, all values are compared.
    """
    if ours.shape != theirs.shape:
        return Line(name, where, float("inf"), LOGITS, f"shapes {ours.shape} and {theirs.shape}")
    difference, size = _largest(ours - theirs, mask), max(1.0, _largest(theirs, mask))
    return Line(name, where, difference / size, LOGITS, f"{difference:.1e}, where they reach {size:.1f}")


def _largest(array: np.ndarray, mask: np.ndarray | None) -> float:
    """Returns the largest absolute value of an output. If the output has 3 axes, [batch, length, size], and `mask`
    [batch, length] is given, only tokens whose mask is 1 are considered.
    """
    real = mask > 0 if array.ndim == 3 and mask is not None and mask.shape == array.shape[:2] else slice(None)
    return float(np.abs(array[real]).max())
