"""Types that tasks, fields and the data pipeline exchange: training examples, the layouts of their arrays in batch
rows, and `Visit`, one reading of a document.
"""

import dataclasses
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from jaxformer.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
"""Training example: maps array names, such as "tokens", to arrays."""


class Sized(Protocol):
    """Protocol of an encoded document, or of a part of one, that reports its size in memory."""

    @property
    def size(self) -> int:
        """Memory use in units of four bytes. For a text, its number of characters."""
        ...


DocumentT = TypeVar("DocumentT", bound=Sized)


@dataclasses.dataclass(frozen=True)
class Feature:
    """Layout of one array, such as `tokens`, in a batch row. If a row contains several training examples, their arrays
    are concatenated.
    """

    capacity: int
    """Number of entries of this array in a row, such as the number of tokens."""
    dtype: str = "int32"
    """NumPy data type of the array, by name."""
    offset: bool = False
    """Whether the values are token indices within the example. If True, the pipeline adds the start position of the
    example in its packed row, so that they become indices within the row.
    """
    shape: tuple[int, ...] = ()
    """Shape of one entry: () for a scalar such as a token. For an image, one entry is one line of pixels, [width,
    channels], and the `capacity` entries of a batch row are one image.
    """


@dataclasses.dataclass(frozen=True)
class Visit(Generic[DocumentT]):
    """One reading of a document by the data pipeline. It provides what a task needs for making training examples: the
    tokenizer, a random generator, and other documents.
    """

    tokenizer: Tokenizer
    """Tokenizer that encoded the document. None for tasks that do not read text."""
    rng: np.random.Generator
    """Random generator for this reading of the document, seeded by the experiment's seed and the position of the
    reading in the document order.
    """
    draw: Callable[[np.random.Generator], DocumentT]
    """Function that takes a random generator and returns another encoded document of the source, chosen at random."""
