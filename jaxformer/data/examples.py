"""Types that tasks, fields and lanes exchange: examples, the layout of batch rows, and visits to documents."""

import dataclasses
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from jaxformer.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
"""Maps names to the arrays of one example."""


class Sized(Protocol):
    """Protocol of an encoded document or a part of one."""

    @property
    def size(self) -> int:
        """Memory use in units of four bytes. For a text, its number of characters."""
        ...


DocumentT = TypeVar("DocumentT", bound=Sized)


@dataclasses.dataclass(frozen=True)
class Feature:
    """Layout of one array in a batch row. A row concatenates the arrays of successive examples."""

    capacity: int
    """Number of entries in a row."""
    dtype: str = "int32"
    """NumPy dtype name."""
    offset: bool = False
    """Whether the values are token indices. They are then shifted by the position at which the example begins in the
    row.
    """
    shape: tuple[int, ...] = ()
    """Shape of one entry. The entries of an image are its pixel rows, so that one image fills one batch row."""


@dataclasses.dataclass(frozen=True)
class Visit(Generic[DocumentT]):
    """One visit of a lane to a document. It produces the examples of the document."""

    tokenizer: Tokenizer
    """Tokenizer that encoded the document. None for tasks that do not read text."""
    rng: np.random.Generator
    """Random generator of the visit, seeded by the experiment's seed and the visit number."""
    draw: Callable[[np.random.Generator], DocumentT]
    """Returns another encoded document, chosen at random with the given generator."""
