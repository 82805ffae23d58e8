"""Reads and writes the safetensors format (https://github.com/huggingface/safetensors).

A file has a JSON header, followed by the tensor data. The safetensors library is not used, because it needs all tensors
in memory at once when it writes a file.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxformer import limits
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, LazyTensor, read_block

TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Opens the tensors of a safetensors file, keyed by name.

    Raises:
      InputError: If the file is not a safetensors file, is truncated, has tensors that overlap, or a header that is
        larger than `limits.HEADER`.
    """
    size = limits.check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path}: its header claims {length:,} bytes, but the file has {size:,}; download it again"
            )
        limits.HEADER.check(length, str(path))
        text = file.read(length)
    what = f"{path}: not a safetensors file: its header"
    header = limits.parse_json(text, what, object_pairs_hook=lambda pairs: _once(path, pairs))
    if not isinstance(header, dict):
        raise InputError(f"{path}: not a safetensors file: its header is not an object")
    header.pop("__metadata__", None)
    found = {name: _described(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _check_overlaps(path, header)
    return found


def write_safetensors(path: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], arrays: Iterable) -> None:
    """Writes a safetensors file, one tensor at a time.

    Args:
      path: File to write.
      tensors: Dtype and shape of each tensor, keyed by name, in the order of `arrays`.
      arrays: Iterator that computes the tensors one by one.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + size_of(dtype, shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, ThreadPoolExecutor(1) as other:
        flushing = other.submit(lambda: None)
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (dtype, shape)), array in zip(tensors.items(), arrays, strict=True):
            if (array.dtype, array.shape) != (dtype, tuple(shape)):
                raise ValueError(f"{name}: {array.dtype} {array.shape}, announced as {dtype} {shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            if flushing.done():  # Flush to disk in parallel with the following tensors.
                flushing.result()
                flushing = other.submit(os.fdatasync, file.fileno())
        flushing.result()
        file.flush()
        os.fsync(file.fileno())


def size_of(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Returns the size of a tensor in bytes."""
    return math.prod(shape) * dtype.itemsize


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a dict from the names and values of a JSON object. Raises InputError if a name occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: {twice} occurs twice in the header")
    return found


def _check_overlaps(path: Path, header: Mapping[str, Any]) -> None:
    """Raises InputError if two tensors contain the same bytes."""
    last, end = "", 0
    for (begin, stop), name in sorted((entry["data_offsets"], name) for name, entry in header.items()):
        if begin < stop and begin < end:
            raise InputError(f"{path}: {name} overlaps {last} at byte {begin:,}")
        last, end = (name, stop) if stop > end else (last, end)


def _described(path: Path, name: str, entry: Any, start: int, size: int) -> LazyTensor:
    try:
        dtype, shape = TYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        right = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        right = right and end - begin == size_of(dtype, shape)
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise InputError(f"{path}: invalid header entry for {name}: {json.dumps(entry)[:120]}")
    if start + end > size:
        raise InputError(f"{path}: truncated: {name} ends at byte {start + end:,}, but the file has {size:,} bytes")
    return LazyTensor(dtype, shape, lambda: read_block(path, start + begin, dtype, shape))
