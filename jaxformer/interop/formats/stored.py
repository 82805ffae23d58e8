"""Lazy tensors in files of any format: shapes and dtypes are known at once, values are read one by one."""

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
"""Floating-point dtype of the parameters in a folder."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
"""Floating-point dtypes that the parameters in a folder may have, by the names of `--dtype`."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Tensor in a file, not yet read."""

    dtype: np.dtype
    """Dtype of the tensor."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    read: Callable[[], np.ndarray]
    """Function that reads the tensor. Each call reads it again."""


def read_block(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an array that is stored in a file in the same byte layout as in memory.

    Raises:
      InputError: If the file is too short.
    """
    count = int(np.prod(shape))
    array = np.fromfile(path, dtype, count, offset=offset)
    if len(array) != count:
        raise InputError(f"{path}: ends before byte {offset + count * dtype.itemsize:,}")
    return array.reshape(shape)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the same items, computing the next one in another thread while the current one is used."""
    with ThreadPoolExecutor(1) as other:
        following = other.submit(next, items, None)
        while (item := following.result()) is not None:
            following = other.submit(next, items, None)
            yield item
