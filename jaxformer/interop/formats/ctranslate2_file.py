"""Reads the model.bin of CTranslate2 (https://github.com/OpenNMT/CTranslate2): tensors and scalars by name."""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, LazyTensor, read_block

VERSION = 6
"""Version of the format that is read."""
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, BFLOAT16)
"""Types of tensors by their number in a file."""


def open_ctranslate2(path: Path) -> tuple[str, dict[str, LazyTensor]]:
    """Opens the tensors of a file.

    Returns:
      Name of the kind of model, such as `WhisperSpec`, and the tensors by name. Tied tensors have several names.

    Raises:
      InputError: If the file is not in this format, is of another version, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            (version,) = _numbers(file, "I")
            if version != VERSION:
                raise InputError(f"{path}: version {version} of CTranslate2's format; expected {VERSION}")
            kind = _name(file)
            _, count = _numbers(file, "II")
            tensors = dict(_tensor(path, file, size) for _ in range(count))
            (count,) = _numbers(file, "I")
            for _ in range(count):
                alias, name = _name(file), _name(file)
                tensors[alias] = tensors[name]
        except (struct.error, UnicodeDecodeError, IndexError, KeyError) as error:
            raise InputError(f"{path}: not a complete model.bin of CTranslate2; download it again") from error
    return kind, tensors


def _tensor(path: Path, file: BinaryIO, size: int) -> tuple[str, LazyTensor]:
    name = _name(file)
    (rank,) = _numbers(file, "B")
    shape = _numbers(file, "I" * rank)
    number, length = _numbers(file, "BI")
    dtype, start = np.dtype(TYPES[number]), file.tell()
    if length != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize or start + length > size:
        raise InputError(f"{path}: truncated: {name} ends at byte {start + length:,}, but the file has {size:,} bytes")
    file.seek(length, 1)
    return name, LazyTensor(dtype, shape, lambda: read_block(path, start, dtype, shape))


def _numbers(file: BinaryIO, kinds: str) -> tuple[int, ...]:
    layout = f"<{kinds}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _name(file: BinaryIO) -> str:
    (length,) = _numbers(file, "H")
    content = file.read(length)
    if len(content) < length:
        raise struct.error("the name is truncated")
    return content.rstrip(b"\0").decode()
