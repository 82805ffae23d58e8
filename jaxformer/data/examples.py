"""The types that tasks, fields and lanes exchange: examples, the layout of rows, and visits to documents."""

import dataclasses
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from jaxformer.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
"""The arrays of one example by name."""


class Sized(Protocol):
    """An encoded document or a part of one."""

    @property
    def size(self) -> int:
        """Memory that it takes, in units of four bytes; for a text, its characters."""
        ...


DocumentT = TypeVar("DocumentT", bound=Sized)


@dataclasses.dataclass(frozen=True)
class Feature:
    """The layout of one array in a row, where the arrays of successive examples follow each other."""

    capacity: int
    """Entries in a row."""
    dtype: str = "int32"
    """NumPy's name of the type."""
    offset: bool = False
    """Whether the values are indices of tokens, to be shifted to where the example begins."""
    shape: tuple[int, ...] = ()
    """Shape of an entry. The entries of an image are its pixel rows, so that one image fills a row of the batch."""


@dataclasses.dataclass(frozen=True)
class Visit(Generic[DocumentT]):
    """One visit of a lane to a document."""

    tokenizer: Tokenizer
    """The tokenizer that encoded the document; tasks that read no text are not given one, and do not use it."""
    rng: np.random.Generator
    """The visit's own generator, a function of the seed and the number of the visit."""
    draw: Callable[[np.random.Generator], DocumentT]
    """Returns another encoded document at random; deterministic given its generator."""
