"""Reads PyTorch files without PyTorch.

A restricted unpickler creates only tensors, so that code in a file is never run. Current files are zip archives with
`data.pkl`, whose tensors refer to archive entries that contain the values. Files from before PyTorch 1.6 are sequences
of pickles, followed by the values.
"""

import dataclasses
import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxformer import limits
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, LazyTensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(bool),
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Flat array of numbers in a file. PyTorch tensors are views of such a storage."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _View:
    """Tensor that is a strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_pytorch(path: Path) -> dict[str, LazyTensor]:
    """Opens the tensors of a PyTorch file that contains a state dict, keyed by name.

    Raises:
      InputError: If the file is not a PyTorch file, is truncated, or contains anything but tensors.
    """
    limits.check_file(path)
    try:
        views, read = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
        if not isinstance(views, dict):
            raise InputError(f"{path}: a pickled {type(views).__name__}; expected tensors by name")
        if "state_dict" in views:
            raise InputError(f"{path}: a training checkpoint; expected only its state_dict")
        return {str(name): _stored(path, str(name), view, read) for name, view in views.items()}
    except InputError:
        raise
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a PyTorch file, or truncated: {limits.one_line(error)}") from error
    except Exception as error:  # An invalid pickle may raise any exception.
        raise InputError(f"{path}: its pickle cannot be read as tensors: {limits.one_line(error)}") from error


class _Tensors(pickle.Unpickler):
    """Unpickler of a state dict. It creates only tensors, and raises an InputError that names any other class in the
    file.
    """

    def __init__(self, file: IO[bytes], path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _BUILDERS:
            return _BUILDERS[name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        raise InputError(f"{self._path}: its pickle contains {module}.{name}; refused: only tensors are read")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage, key, _, count, *view = identity
        if kind != "storage" or not isinstance(storage, _StorageType) or any(view):
            raise InputError(f"{self._path}: its pickle refers to something other than a tensor's storage; refused")
        return _Storage(str(key), storage.dtype, int(count))


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(view: _View, *_: Any) -> _View:
    return view


_BUILDERS = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_parameter": _rebuild_parameter,
}

_Read = Callable[[_Storage, int, int], np.ndarray]
"""Function that reads `count` numbers of a storage, starting at index `first`: (storage, first, count) → array."""


def _loaded(file: IO[bytes], path: Path) -> Any:
    """Loads the pickle at the current position of a file, after a check of its numbers of stored objects: the unpickler
    allocates memory for all numbers below the largest one.
    """
    start = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int):
            limits.ENTRIES.check(argument, str(path))
    file.seek(start)
    return _Tensors(file, path).load()


def _open_zip(path: Path) -> tuple[Any, _Read]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        size = sum(entry.file_size for entry in archive.infolist())
        limits.ENTRIES.check(len(archive.infolist()), str(path))
        limits.EXPANSION.check(size // (path.stat().st_size + 1), str(path))
        if len(names) != 1:
            raise InputError(f"{path}: a zip file, but not a PyTorch file: it has no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise InputError(f"{path}: its numbers are big-endian; expected little-endian")
        views = _loaded(io.BytesIO(archive.read(names[0])), path)

    def read(storage: _Storage, first: int, count: int) -> np.ndarray:
        size = storage.dtype.itemsize
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{folder}data/{storage.key}") as file:
                file.seek(first * size)
                return np.frombuffer(file.read(count * size), storage.dtype)
        except (KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: truncated or changed: {limits.one_line(error)}") from error

    return views, read


def _open_legacy(path: Path) -> tuple[Any, _Read]:
    with path.open("rb") as file:
        if file.read(2) not in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise InputError(f"{path}: not a PyTorch file")
        file.seek(0)
        magic, protocol, system = (_loaded(file, path) for _ in range(3))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise InputError(f"{path}: a pickle, but not a PyTorch file")
        if not system["little_endian"]:
            raise InputError(f"{path}: its numbers are big-endian; expected little-endian")
        views, keys = _loaded(file, path), _loaded(file, path)
        storages = {view.storage.key: view.storage for view in views.values() if isinstance(view, _View)}
        starts, end = {}, path.stat().st_size
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            storage = storages.get(str(key))
            if storage is None or count != storage.count:
                raise InputError(f"{path}: the list of storages does not match the tensors")
            starts[str(key)] = file.tell()
            file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
        if file.tell() > end:
            raise InputError(f"{path}: truncated: expected {file.tell():,} bytes, found {end:,}")

    def read(storage: _Storage, first: int, count: int) -> np.ndarray:
        return np.fromfile(path, storage.dtype, count, offset=starts[storage.key] + first * storage.dtype.itemsize)

    return views, read


def _stored(path: Path, name: str, view: Any, read: _Read) -> LazyTensor:
    if not isinstance(view, _View):
        raise InputError(f"{path}: {name} is a {type(view).__name__}; expected a tensor")
    if len(view.shape) != len(view.strides) or min((view.offset, *view.shape, *view.strides), default=0) < 0:
        raise InputError(f"{path}: {name} has an impossible shape or strides")
    empty = 0 in view.shape
    reach = sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True)) + 1
    reach = 0 if empty else reach
    if view.offset + reach > view.storage.count:
        raise InputError(f"{path}: {name} reaches beyond its storage of {view.storage.count:,} numbers")
    if math.prod(view.shape) > view.storage.count:
        raise InputError(f"{path}: {name} has more numbers than its storage of {view.storage.count:,}")

    def load() -> np.ndarray:
        numbers = read(view.storage, view.offset, reach)
        if len(numbers) != reach:
            raise InputError(f"{path}: truncated: {name} is incomplete")
        strides = [step * numbers.itemsize for step in view.strides]
        return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)

    return LazyTensor(view.storage.dtype, view.shape, load)
