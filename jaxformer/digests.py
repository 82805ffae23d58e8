"""Digests that show whether files still have the content with which they were written.

A folder contains a file named `DIGESTS` with the size and the digest of each of its other files. A JSON file has the
digest of its other fields as its first field (`seal`). A line of JSON has such a digest as its last field
(`seal_line`). The digest is XXH3 with 64 bits, which detects accidental changes but not intended ones, as anyone can
compute it again.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from jaxformer import storage
from jaxformer.errors import InputError

DIGESTS = "digests.json"
"""Name of the file with the digests of a folder."""
FIELD = "digest"
"""Name of the field with the digest of a JSON object."""
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 1 << 22
_SEALED = re.compile(rf'\{{\n  "{FIELD}": "([^"\n]*)",\n')
_SEALED_LINE = re.compile(rf'(\{{.*), "{FIELD}": "([^"]*)"\}}', re.DOTALL)


class Mismatch(InputError):
    """Error for content that does not match its digest, or has none."""


class Digest(NamedTuple):
    """Size and digest of a file."""

    size: int
    """Size in bytes."""
    value: str
    """Digest of the content with the prefix `xxh3:`. For an object in a bucket, the checksum that the storage server
    reports, with the prefix `md5:` or `etag:`.
    """


def of(content: bytes) -> str:
    """Returns the XXH3 digest of `content`, with the prefix `xxh3:`."""
    return f"xxh3:{xxhash.xxh3_64_hexdigest(content)}"


def of_file(path: Path, kind: str = "xxh3") -> Digest:
    """Reads a file, or an object in a bucket, and returns its size and digest.

    Args:
      path: path of the file or object.
      kind: hash function, `xxh3` or `md5`. `md5` is only for local files, to compare them with objects in a bucket.
    """
    if storage.is_remote(path):
        content = storage.read_bytes(str(path))
        return Digest(len(content), of(content))
    digest, size, buffer = xxhash.xxh3_64() if kind == "xxh3" else hashlib.md5(), 0, bytearray(_CHUNK)
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:read])
            size += read
    return Digest(size, f"{kind}:{digest.hexdigest()}")


def of_folder(folder: Path, chosen: Callable[[str], bool] = lambda name: True) -> dict[str, Digest]:
    """Returns the digests of the files below a folder, keyed by relative path. For a folder in a bucket, returns the
    checksums that the storage server has computed, without reading the objects.

    Args:
      folder: the folder.
      chosen: function of a relative path that returns whether to include the file.
    """
    found = {name: info for name, info in _below(folder).items() if chosen(name)}
    if storage.is_remote(folder):
        return {name: _of_object(info) for name, info in found.items()}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(found, threads.map(lambda name: of_file(folder / name), found), strict=True))


def write(folder: Path, files: Mapping[str, Digest], name: str = DIGESTS) -> None:
    """Writes the digests of a folder's files to a file in the folder. If it is local, waits until it is on the disk.

    Args:
      folder: the folder.
      files: digests of the files, keyed by relative path.
      name: name of the file to write.
    """
    values = {file: f"{digest.value} {digest.size}" for file, digest in sorted(files.items())}
    (folder / name).write_text(seal(json.dumps({"files": values}, indent=2) + "\n"), encoding="utf-8")
    if not storage.is_remote(folder):
        sync(folder / name)


def read(folder: Path, name: str = DIGESTS) -> dict[str, Digest]:
    """Returns the digests that `write` wrote. Raises Mismatch if they are missing or damaged."""
    try:
        text = unseal(storage.read_bytes(str(folder / name)).decode(errors="replace"))
    except FileNotFoundError as error:
        raise Mismatch(f"{name} is missing") from error
    except Mismatch as error:
        raise Mismatch(f"{name}: {error}") from error
    pairs = {file: value.rpartition(" ") for file, value in json.loads(text)["files"].items()}
    return {file: Digest(int(size), value) for file, (value, _, size) in pairs.items()}


def problems(
    folder: Path,
    files: Mapping[str, Digest],
    checked: Callable[[str], bool] = lambda name: True,
    share: tuple[int, int] = (0, 1),
) -> list[str]:
    """Compares the files of a folder with their digests. Returns a phrase for each file that is missing, is not in
    `files`, or has another size or content.

    Args:
      folder: the folder.
      files: expected digests of its files, keyed by relative path.
      checked: function of a relative path that returns whether to check the file.
      share: (i, n) reads the contents of only the i-th of n shares of the files, so that n processes can divide the
        work. Names and sizes are always compared.
    """
    found, remote = _below(folder), storage.is_remote(folder)
    names = sorted(filter(checked, files), key=lambda name: (-files[name].size, name))
    wrong = {name: "is missing" for name in names if name not in found}
    wrong |= {name: "does not belong there" for name in found if name not in files and checked(name)}
    sizes = {name: found[name]["size"] for name in names if name in found}
    wrong |= {
        name: f"has {size:,} bytes; {files[name].size:,} were written"
        for name, size in sizes.items()
        if size != files[name].size
    }
    left = [name for name in names if name not in wrong]
    if remote:
        of_server = {name: _of_object(found[name]).value for name in left}
        differ = {name for name in left if _comparable(files[name].value, of_server[name])}
        wrong |= {name: _DIFFERS for name in differ if files[name].value != of_server[name]}
    own, shares = share
    kinds = {name: files[name].value.partition(":")[0] for name in left}
    left = [name for name in left if kinds[name] == "xxh3" or (kinds[name] == "md5" and not remote)][own::shares]
    with ThreadPoolExecutor(_THREADS) as threads:
        now = zip(left, threads.map(lambda name: of_file(folder / name, kinds[name]), left), strict=True)
        wrong |= {name: _DIFFERS for name, digest in now if digest != files[name]}
    return [f"{name} {problem}" for name, problem in sorted(wrong.items())]


def summary(phrases: Collection[str]) -> str:
    """Returns the first of several problems, followed by the number of other problems."""
    first = next(iter(phrases))
    return first if len(phrases) == 1 else f"{first} (and {len(phrases) - 1} more)"


def seal(text: str) -> str:
    """Returns the text of an indented JSON object with its digest added as the first field, on a line of its own."""
    body = text.removeprefix("{\n")
    return f'{{\n  "{FIELD}": "{of(text.encode())}",\n{body}'


def is_sealed(text: str) -> bool:
    """Returns whether a text begins with the digest that `seal` adds, whether or not it matches."""
    return _SEALED.match(text) is not None


def unseal(text: str) -> str:
    """Returns the text that was given to `seal`. Raises Mismatch if it has changed or has no digest."""
    found = _SEALED.match(text)
    if found is None:
        raise Mismatch("it has no digest")
    plain = "{\n" + text[found.end() :]
    if of(plain.encode()) != found[1]:
        raise Mismatch("its content does not match its digest")
    return plain


def seal_line(text: str) -> str:
    """Returns the text of a JSON object on one line with its digest added as the last field."""
    return f'{text[:-1]}, "{FIELD}": "{of(text.encode())}"}}'


def unseal_line(text: str) -> str | None:
    """Returns the line that was given to `seal_line`. None if the line has changed or has no digest."""
    found = _SEALED_LINE.fullmatch(text)
    plain = f"{found[1]}}}" if found else ""
    return plain if found and of(plain.encode()) == found[2] else None


def sync(path: Path) -> None:
    """Waits until a local file, or the list of files in a local folder, is on the disk (fsync)."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_all(folder: Path, names: Iterable[str]) -> None:
    """Waits until some files of a local folder, and the lists of files in it and in all folders below it, are on the
    disk.
    """
    for name in names:
        sync(folder / name)
    for home, _, _ in os.walk(folder):
        sync(Path(home))


_DIFFERS = "has another content than was written"


def _below(folder: Path) -> dict[str, dict[str, Any]]:
    """Lists the files below a folder, except `DIGESTS`. Returns a dict that maps relative paths to information about
    the files: the `size` in bytes, and for objects in a bucket all that fsspec returns.
    """
    if storage.is_remote(folder):
        return {name: info for name, info in storage.objects_below(str(folder)).items() if name != DIGESTS}
    found = {}
    for home, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(home, name)
            found[os.path.relpath(path, folder)] = {"size": os.lstat(path).st_size}
    found.pop(DIGESTS, None)
    return found


def _of_object(info: Mapping[str, Any]) -> Digest:
    if md5 := info.get("md5Hash"):
        return Digest(info["size"], f"md5:{base64.b64decode(md5).hex()}")
    etag = info.get("ETag") or info.get("etag") or info.get("crc32c") or ""
    return Digest(info["size"], f"etag:{str(etag).strip(chr(34))}")


def _comparable(one: str, other: str) -> bool:
    """Returns whether two digests differ only if the contents differ. False if they are of different kinds, or one is
    the ETag of an upload in parts, which contains `-` and depends on the parts.
    """
    return one.partition(":")[0] == other.partition(":")[0] and "-" not in one + other
