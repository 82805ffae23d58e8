"""Tensors in a file, of any format: described at once, read one by one."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import ml_dtypes
import numpy as np

from jaxformer.errors import InputError

Item = TypeVar("Item")
DType = Literal["float32", "bfloat16", "float16"]
"""A type of parameters in a folder."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
"""Types of parameters that a folder may have, by the names of `--dtype`."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file."""

    dtype: np.dtype
    """Its type."""
    shape: tuple[int, ...]
    """Its shape."""
    read: Callable[[], np.ndarray]
    """Reads the tensor, on each call again."""


def read_block(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array whose bytes in a file are those that it has in memory.

    Raises:
      InputError: the file has become shorter.
    """
    count = int(np.prod(shape))
    array = np.fromfile(path, dtype, count, offset=offset)
    if len(array) != count:
        raise InputError(f"{path}: ends before byte {offset + count * dtype.itemsize:,}")
    return array.reshape(shape)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as other:
        following = other.submit(next, items, None)
        while (item := following.result()) is not None:
            following = other.submit(next, items, None)
            yield item
