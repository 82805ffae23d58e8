"""Reads old Flax checkpoints of Hugging Face models (`flax_model.msgpack`), and converts the parameter names and
layouts to those of PyTorch. Arrays are read only when they are needed.

Flax stores an array as a msgpack extension of type 1, which contains the shape, the dtype name and the bytes. PyTorch
stores the transposed kernel of a linear layer, and names kernels, scales and embeddings `weight`.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 (makes NumPy know bfloat16)
import numpy as np

from jaxformer import limits
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import LazyTensor, read_block

ARRAY = 1
CHUNKED = "__msgpack_chunked_array__"


def open_flax(path: Path) -> dict[str, LazyTensor]:
    """Opens the tensors of a Flax checkpoint. Returns them keyed by their PyTorch names, and in the layout of PyTorch.

    Raises:
      InputError: If the file is not a Flax checkpoint, or is truncated.
    """
    limits.check_file(path)
    try:
        return _opened(path)
    except InputError:
        raise
    except Exception as error:  # Invalid data may raise any exception, such as a list that is a key.
        raise InputError(f"{path}: not a Flax checkpoint, or truncated: {limits.one_line(error)}") from error


def _opened(path: Path) -> dict[str, LazyTensor]:
    with path.open("rb") as file:
        tree = _Walker(path, file).value()
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a Flax checkpoint: it has no tree of arrays")
    tree = tree.get("params", tree)
    found: dict[str, LazyTensor] = {}
    for names, array in _leaves(path, tree, ()):
        name, stored = _as_pytorch(names, array)
        if name in found:
            raise InputError(f"{path}: {name} occurs twice, the second time as {'/'.join(names)}")
        found[name] = stored
    return found


class _Walker:
    """Parser of msgpack data. Arrays become `LazyTensor`s, which are read from the file when they are needed."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._size, self._entries = path, file, path.stat().st_size, 0

    def value(self) -> Any:
        code = self._number("B")
        self._entries += 1
        limits.ENTRIES.check(self._entries, str(self._path))
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code < 0x90:
            return self._map(code & 0x0F)
        if code < 0xA0:
            return [self.value() for _ in range(code & 0x0F)]
        if code < 0xC0:
            return self._bytes(code & 0x1F).decode()
        simple = {0xC0: None, 0xC2: False, 0xC3: True}
        if code in simple:
            return simple[code]
        if 0xCA <= code <= 0xD3:
            return self._number("fdBHIQbhiq"[code - 0xCA])
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << (code - 0xD4))
        return self._long(code)

    def _long(self, code: int) -> Any:
        """Reads a value that is preceded by its length. `code` is the msgpack type byte."""
        for first, sizes, make in (
            (0xC4, "BHI", self._place),
            (0xC7, "BHI", self._extension),
            (0xD9, "BHI", lambda size: self._bytes(size).decode()),
            (0xDC, "HI", lambda size: [self.value() for _ in range(size)]),
            (0xDE, "HI", self._map),
        ):
            if first <= code < first + len(sizes):
                return make(self._number(sizes[code - first]))
        raise InputError(f"{self._path}: not a Flax checkpoint: byte {code:#x} at {self._file.tell() - 1:,}")

    def _map(self, size: int) -> dict:
        pairs = [(self.value(), self.value()) for _ in range(size)]
        return dict(pairs)

    def _place(self, size: int) -> tuple[int, int]:
        """Skips `size` bytes of the file, and returns their start position and `size`."""
        start = self._file.tell()
        if start + size > self._size:
            raise InputError(f"{self._path}: truncated: expected at least {start + size:,} bytes")
        self._file.seek(start + size)
        return start, size

    def _extension(self, size: int) -> Any:
        kind = self._number("b")
        if kind != ARRAY:
            raise InputError(f"{self._path}: expected an array, not an extension of type {kind}")
        shape, name, (start, length) = self.value()
        try:
            dtype, shape = np.dtype(name), tuple(map(int, shape))
        except TypeError as error:
            raise InputError(f"{self._path}: an array of unknown dtype {name!r}") from error
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
            raise InputError(f"{self._path}: an array of {length:,} bytes, which does not fit {name} {list(shape)}")
        path = self._path
        return LazyTensor(dtype, shape, lambda: read_block(path, start, dtype, shape))

    def _number(self, letter: str) -> Any:
        return struct.unpack(f">{letter}", self._file.read(struct.calcsize(letter)))[0]

    def _bytes(self, size: int) -> bytes:
        start, _ = self._place(size)
        self._file.seek(start)
        return self._file.read(size)


def _leaves(path: Path, tree: Any, names: tuple[str, ...]):
    if isinstance(tree, LazyTensor):
        yield names, tree
    elif isinstance(tree, dict) and CHUNKED in tree:
        yield names, _joined(tree)
    elif isinstance(tree, dict):
        for name, child in tree.items():
            yield from _leaves(path, child, (*names, str(name)))
    else:
        raise InputError(f"{path}: {'/'.join(names)} is not an array")


def _joined(tree: dict) -> LazyTensor:
    """Joins the chunks of an array that Flax has divided, because msgpack has a limit of 4 GiB.

    Args:
      tree: dict with the shape and the chunks.
    """
    shape = tuple(tree["shape"][key] for key in sorted(tree["shape"], key=int))
    chunks = [tree["chunks"][key] for key in sorted(tree["chunks"], key=int)]
    if math.prod(shape) != sum(chunk.shape[0] for chunk in chunks):
        raise ValueError(f"chunks that do not fit an array of shape {shape}")

    def read() -> np.ndarray:
        array, first = np.empty(math.prod(shape), chunks[0].dtype), 0
        for chunk in chunks:
            array[first : first + chunk.shape[0]] = chunk.read()
            first += chunk.shape[0]
        return array.reshape(shape)

    return LazyTensor(chunks[0].dtype, shape, read)


def _as_pytorch(names: tuple[str, ...], array: LazyTensor) -> tuple[str, LazyTensor]:
    """Converts the name and the layout of a Flax parameter to those of PyTorch."""
    *parts, last = names
    if last == "kernel" and len(array.shape) == 2:
        array = LazyTensor(array.dtype, array.shape[::-1], lambda read=array.read: read().T)
    return ".".join([*parts, "weight" if last in ("kernel", "embedding", "scale") else last]), array
