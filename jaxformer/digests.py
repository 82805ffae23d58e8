"""Digests of files, which detect files whose content has changed since they were written.

`write` adds a file `digests.json` to a folder, with the size and digest of each of the folder's other files. `seal`
adds a first field to a JSON file, with the digest of its other fields. `seal_line` does the same for a JSON object on
one line, in a last field. The digest is XXH3 with 64 bits. It detects accidental changes, but not intended ones,
because anyone can compute it for changed content.
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
"""Name of the file that contains the digests of the other files in its folder."""
FIELD = "digest"
"""Name of the field of a JSON object that contains the digest of its other fields."""
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 1 << 22
_SEALED = re.compile(rf'\{{\n  "{FIELD}": "([^"\n]*)",\n')
_SEALED_LINE = re.compile(rf'(\{{.*), "{FIELD}": "([^"]*)"\}}', re.DOTALL)


class Mismatch(InputError):
    """Error for content that does not match its digest, or has none."""


class Digest(NamedTuple):
    """Size and digest of a file."""

    size: int
    """Size of the file in bytes."""
    value: str
    """Digest of the file's content, with the prefix `xxh3:` or `md5:`. For an object in a bucket, the checksum that the
    storage server reports, with the prefix `md5:` or `etag:`.
    """


def of(content: bytes) -> str:
    """Returns the XXH3 digest of `content` in hexadecimal, with the prefix `xxh3:`."""
    return f"xxh3:{xxhash.xxh3_64_hexdigest(content)}"


def of_chunks(chunks: Iterable[bytes]) -> str:
    """Returns the digest of content that is given in chunks, in the form of `of`."""
    digest = xxhash.xxh3_64()
    for chunk in chunks:
        digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"


def of_file(path: Path, kind: str = "xxh3") -> Digest:
    """Reads a local file, or an object in a bucket, and returns its size and digest.

    Args:
      path: path of the file or object.
      kind: hash function of a local file, `xxh3` or `md5`. Use `md5` to compare a file with an object in a bucket. For
        an object, always `xxh3`.
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
    """Returns the digests of the files in a folder and its subfolders, keyed by relative path. For a folder in a
    bucket, these are the checksums that the storage server reports, so no object is read.

    Args:
      folder: path of the folder.
      chosen: function that takes a relative path and returns whether to include the file.
    """
    found = {name: info for name, info in _below(folder).items() if chosen(name)}
    if storage.is_remote(folder):
        return {name: _of_object(info) for name, info in found.items()}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(found, threads.map(lambda name: of_file(folder / name), found), strict=True))


def write(folder: Path, files: Mapping[str, Digest], name: str = DIGESTS) -> None:
    """Writes a file with the digests of the other files in a folder. In a local folder, waits until the file is on the
    disk (fsync).

    Args:
      folder: path of the folder.
      files: digests of the other files, keyed by relative path.
      name: name of the file to write.
    """
    values = {file: f"{digest.value} {digest.size}" for file, digest in sorted(files.items())}
    (folder / name).write_text(seal(json.dumps({"files": values}, indent=2) + "\n"), encoding="utf-8")
    if not storage.is_remote(folder):
        sync(folder / name)


def read(folder: Path, name: str = DIGESTS) -> dict[str, Digest]:
    """Reads the digests that `write` wrote to a folder, keyed by relative path. Raises Mismatch if the file is missing
    or damaged.
    """
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
    """Compares the files in a folder and its subfolders with their expected digests. Returns a phrase, such as "a.npy
    is missing", for each file that is missing, unexpected, or has another size or content.

    Args:
      folder: path of the folder.
      files: expected digests, keyed by relative path.
      checked: function that takes a relative path and returns whether to check the file.
      share: pair (i, n), with which n processes divide the work: process i reads the content of every n-th file. Names
        and sizes are always compared for all files.
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
    """Returns the first of several phrases from `problems`, with the number of further ones, such as "a.npy is missing
    (and 2 more)".
    """
    first = next(iter(phrases))
    return first if len(phrases) == 1 else f"{first} (and {len(phrases) - 1} more)"


def seal(text: str) -> str:
    """Adds the digest of a JSON object to it, as its first field on a separate line. `text` is the indented JSON text
    of the object. Returns the new text.
    """
    body = text.removeprefix("{\n")
    return f'{{\n  "{FIELD}": "{of(text.encode())}",\n{body}'


def is_sealed(text: str) -> bool:
    """Returns whether a JSON text begins with a digest field as `seal` adds it. Does not check whether it matches."""
    return _SEALED.match(text) is not None


def unseal(text: str) -> str:
    """Inverse of `seal`: checks the digest in a JSON text, and returns the text without it. Raises Mismatch if the
    content does not match the digest, or there is none.
    """
    found = _SEALED.match(text)
    if found is None:
        raise Mismatch("it has no digest")
    plain = "{\n" + text[found.end() :]
    if of(plain.encode()) != found[1]:
        raise Mismatch("its content does not match its digest")
    return plain


def seal_line(text: str) -> str:
    """Adds the digest of a JSON object to it, as its last field. `text` is the JSON text of the object on one line.
    Returns the new line.
    """
    return f'{text[:-1]}, "{FIELD}": "{of(text.encode())}"}}'


def unseal_line(text: str) -> str | None:
    """Inverse of `seal_line`: returns the line without its digest. Returns None if the content does not match the
    digest, or there is none.
    """
    found = _SEALED_LINE.fullmatch(text)
    plain = f"{found[1]}}}" if found else ""
    return plain if found and of(plain.encode()) == found[2] else None


def sync(path: Path) -> None:
    """Waits until the content of a local file, or the directory entry of a local folder, is on the disk (fsync)."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_all(folder: Path, names: Iterable[str]) -> None:
    """Waits until files of a local folder, and the directory entries of the folder and all its subfolders, are on the
    disk (fsync).

    Args:
      folder: path of the folder.
      names: relative paths of the files.
    """
    for name in names:
        sync(folder / name)
    for home, _, _ in os.walk(folder):
        sync(Path(home))


_DIFFERS = "has another content than was written"


def _below(folder: Path) -> dict[str, dict[str, Any]]:
    """Lists the files in a folder and its subfolders, except for `DIGESTS` in the folder itself. Returns a dict that
    maps relative paths to dicts with the `size` in bytes. For objects in a bucket, these contain everything that fsspec
    reports, such as checksums.
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
    """Returns whether two digests can be compared: they must be of the same kind, and neither may be the ETag of a
    multipart upload (which contains `-`), because it depends on the sizes of the parts.
    """
    return one.partition(":")[0] == other.partition(":")[0] and "-" not in one + other
