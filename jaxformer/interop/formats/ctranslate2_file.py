"""Reads model.bin files of the inference library CTranslate2 (https://github.com/OpenNMT/CTranslate2). A file contains
named tensors and scalars.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, LazyTensor, read_block

VERSION = 6
"""Version of the model.bin format that can be read."""
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, BFLOAT16)
"""NumPy dtypes of tensors. A file stores the dtype of a tensor as an index of this tuple."""


def open_ctranslate2(path: Path) -> tuple[str, dict[str, LazyTensor]]:
    """Opens a model.bin file of CTranslate2. The values of its tensors are read only when they are needed.

    Returns:
      The name of the kind of model, such as `WhisperSpec`, and a dict that maps names to tensors. A tied tensor has
      several names.

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
