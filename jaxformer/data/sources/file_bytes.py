"""Bytes of files, read when they are requested."""

import errno
import io
import os
import stat
import weakref
from collections.abc import Iterator

from jaxformer.errors import InputError

_CHUNK = 2**20


class FileBytes:
    """The bytes of an open file. `content[start:stop]` reads a part of them.

    A memory map would end the process with SIGBUS if the file is shortened while it is open. This class raises an
    error.
    """

    def __init__(self, path: str):
        """Opens a file. Raises OSError if it cannot be opened, or is not a regular file, such as a pipe."""
        check_regular(path)
        self.path, self._file = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)  # Sources stay open as long as they are used.
        self._size = os.fstat(self._file).st_size

    def __len__(self) -> int:
        """Returns the size of the file in bytes when it was opened."""
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        content = self.part(start, stop)
        if len(content) < stop - start:
            now = os.fstat(self._file).st_size
            raise InputError(
                f"{self.path}: has been cut from {self._size:,} to {now:,} bytes since it was opened; put a whole copy "
                "back, and start again"
            )
        return content

    def __bytes__(self) -> bytes:
        return self[:]

    def part(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a part of the file. They are fewer if the file has been shortened."""
        found: list[bytes] = []
        try:
            while start < stop and (new := os.pread(self._file, stop - start, start)):
                found.append(new)
                start += len(new)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        return found[0] if len(found) == 1 else b"".join(found)

    def lines(self) -> Iterator[bytes]:
        """Yields the lines of the file, each with its line break."""
        with io.FileIO(self._file, closefd=False) as file:
            file.seek(0)
            yield from io.BufferedReader(file, _CHUNK)


def check_regular(path: str) -> None:
    """Raises OSError if a path does not lead to a regular file. Opening a pipe would wait for its other end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "not a regular file", path)


def chunks(content: FileBytes | bytes) -> Iterator[bytes]:
    """Yields the bytes of a file in chunks of a megabyte."""
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]
