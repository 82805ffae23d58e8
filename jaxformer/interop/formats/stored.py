"""Defines `LazyTensor`, a tensor in a file of any format. Its shape and dtype are known when the file is opened. Its
values are read later, so that only a few tensors are in memory at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import ml_dtypes
import numpy as np

from jaxformer.errors import InputError

Item = TypeVar("Item")
DType = Literal["float32", "bfloat16", "float16"]
"""Name of a floating-point type in which parameters can be stored."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
"""Maps the values of `--dtype` to floating-point types of NumPy."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Tensor in a file. Its values are read only when they are needed."""

    dtype: np.dtype
    """Dtype of the tensor."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    read: Callable[[], np.ndarray]
    """Function that reads the values from the file. Each call reads them again."""


def read_block(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an array from its raw bytes in a file, in row-major order, starting at byte `offset`.

    Raises:
      InputError: If the file is too short.
    """
    count = math.prod(shape)
    if offset + count * dtype.itemsize > path.stat().st_size:  # Before the memory for it is allocated.
        raise InputError(f"{path}: ends before byte {offset + count * dtype.itemsize:,}")
    array = np.fromfile(path, dtype, count, offset=offset)
    if len(array) != count:
        raise InputError(f"{path}: ends before byte {offset + count * dtype.itemsize:,}")
    return array.reshape(shape)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items of an iterator. While an item is in use, the next one is computed in another thread."""
    with ThreadPoolExecutor(1) as other:
        following = other.submit(next, items, None)
        while (item := following.result()) is not None:
            following = other.submit(next, items, None)
            yield item
