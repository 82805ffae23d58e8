"""Access to local files and to objects in buckets: `gs://BUCKET/KEY` and `s3://BUCKET/KEY`.

`path` converts a name to a path object with the interface of pathlib. Objects are written atomically as a whole, and
cannot be appended to.
"""

import asyncio
import contextlib
import fnmatch
import functools
import glob
import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from jaxformer.errors import InputError

CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""Maps each URL scheme to the package that supports it and the extra of jaxformer that installs the package."""
STALLED = 30
"""Number of seconds without data after which a request counts as failed and is retried."""
TRIES = 6
"""Maximum number of attempts for a request that fails. The wait between two attempts starts at 1 s and doubles."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MOST_SAID = 200
_AT_ONCE = 8
"""Number of objects that are copied from or to a bucket at the same time."""
_STATUS = re.compile(
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b"
)
"""Matches the status names in the messages of TensorStore errors that mean that the bucket could not be accessed. The
exception type is not sufficient, because TensorStore uses it for other errors too.
"""


def is_remote(name: str | os.PathLike) -> bool:
    """Returns whether a path is in a bucket."""
    return bool(_SCHEME.match(os.fspath(name)))


def path(name: str | os.PathLike) -> Path:
    """Converts a name to a path: a `pathlib.Path`, or for a bucket an `etils.epath` path, which has the same methods.

    Raises:
      InputError: If the scheme is neither gs:// nor s3://, the bucket name is missing, or the package for the scheme
        is not installed.
    """
    name = os.fspath(name)
    found = _SCHEME.match(name)
    if found is None:
        return Path(name)
    scheme = found[1]
    if scheme not in CLIENTS:
        raise InputError(f"{name}: expected a local path, or one that begins with gs:// or s3://")
    if not name.removeprefix(f"{scheme}://").strip("/"):
        raise InputError(f"{name}: expected the name of a bucket after {scheme}://")
    package, extra = CLIENTS[scheme]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{name}: needs {package}, which is not installed; pip install 'jaxformer[{extra}]'")
    _configure()
    from etils import epath

    return cast(Path, epath.Path(name))


def absolute(name: str | os.PathLike) -> Path:
    """Converts a name to an absolute path. Paths in buckets are always absolute."""
    return path(name) if is_remote(name) else Path(name).absolute()


def file_system(name: str | os.PathLike) -> Any:
    """Returns the fsspec file system for a path in a bucket."""
    import fsspec

    path(name)  # Raises InputError if the name is invalid or a package is missing.
    return fsspec.filesystem(os.fspath(name).partition("://")[0])


@functools.cache
def _configure() -> None:
    """Configures the clients of both bucket services: requests fail after a limited time, and listings are not
    cached.
    """
    # TensorStore, which reads and writes checkpoints, has no limit by default for a server that stalls.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(STALLED))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault("EPATH_USE_TF", "false")  # Otherwise epath uses TensorFlow's client if it is installed.
    from fsspec import config

    now = {"use_listings_cache": False, "skip_instance_cache": False}
    settings: dict[str, dict[str, Any]] = {}
    if importlib.util.find_spec("gcsfs"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        settings["gcs"] = {"requests_timeout": timeout} | now
    if importlib.util.find_spec("s3fs"):
        retries = {"mode": "standard", "total_max_attempts": TRIES}
        limits = {"connect_timeout": STALLED, "read_timeout": STALLED, "retries": retries}
        settings["s3"] = {"config_kwargs": limits} | now
    for protocol, values in settings.items():
        config.conf[protocol] = values | config.conf.get(protocol, {})  # Settings of the user take precedence.


def check_bucket(name: str | os.PathLike) -> None:
    """Raises InputError if the bucket of a path does not exist or may not be listed."""
    fs = file_system(name)
    bucket, key = os.fspath(name).partition("://")[2].partition("/")[::2]
    with reported(name, "cannot be listed"):
        try:
            if os.fspath(name).startswith("gs://"):
                fs.call("GET", "b/{}/o", bucket, prefix=key, maxResults=1)
            else:
                fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except FileNotFoundError as error:
            raise InputError(f"{name}: there is no bucket {bucket}, or it may not be read; make it first") from error


@contextlib.contextmanager
def reported(name: str | os.PathLike, problem: str = "cannot be read") -> Iterator[None]:
    """Context manager that converts errors from accessing a bucket to an InputError of one line.

    FileNotFoundError, and all errors for a local path, are raised unchanged.

    Args:
      name: path that the block accesses.
      problem: description of the failure for the error message.
    """
    began = time.monotonic()
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:
        if not is_remote(name) or not is_of_client(error):
            raise
        waited = time.monotonic() - began
        after = f", after {waited:.0f} s" if waited >= 1 else ""
        raise InputError(f"{name}: {problem}{after}: {_reason(error)}") from error


def is_of_client(error: BaseException) -> bool:
    """Returns whether an error was raised by the access to a bucket (its client library), and not by the content of an
    object.
    """
    if isinstance(error, FileNotFoundError):
        return False
    if _STATUS.search(str(error)):
        return True
    packages = {"aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "requests", "s3fs", "fsspec"}
    return isinstance(error, OSError | asyncio.TimeoutError) or type(error).__module__.partition(".")[0] in packages


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    said = said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]} …"
    denied = isinstance(error, PermissionError) or re.search(r"\b(403|Forbidden|AccessDenied)\b", said)
    return f"access is denied ({said})" if denied else said


def read_bytes(name: str) -> bytes:
    """Returns the content of a file, or of an object in a bucket.

    Raises:
      OSError: If it does not exist, or a local file cannot be read.
      InputError: If an object cannot be read.
    """
    with reported(name):
        return path(name).read_bytes()


def rename(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Renames a file or a folder. In a bucket, copies all objects of the folder, then removes the originals."""
    if not is_remote(source):
        os.rename(source, target)
        return
    fs, keys = file_system(source), list(objects_below(os.fspath(source)))
    with reported(source, "cannot be moved"):
        for key in keys:
            fs.cp_file(f"{source}/{key}", f"{target}/{key}")
        fs.rm([f"{source}/{key}" for key in keys])


def matching(pattern: str) -> list[str]:
    """Returns the sorted paths of the files or objects that match a glob pattern."""
    if not is_remote(pattern):
        return [found for found in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(found)]
    with reported(pattern, "cannot be listed"):
        found = file_system(pattern).glob(pattern, detail=True)
    scheme = pattern.partition("://")[0]
    return sorted(f"{scheme}://{name}" for name, entry in found.items() if entry["type"] == "file")


def local_copy(name: str, folder: Path | None = None) -> str:
    """Downloads an object unless there is a local copy of its current version. Returns the path of the copy.

    All processes on this machine share the copies.

    Args:
      name: path of the object. A local path is returned unchanged.
      folder: folder for the copy. Defaults to a cache folder for the current version (see `copies`).

    Raises:
      InputError: If the object does not exist or cannot be read, or the copy cannot be written.
    """
    if not is_remote(name):
        return name
    fs = file_system(name)
    with reported(name):
        try:
            info = fs.info(name)
        except FileNotFoundError as error:
            raise InputError(f"{name}: no such object; give the path of one that can be read") from error
    target = (folder or copies(name, version(info))) / name.rpartition("/")[2]
    if target.exists() and target.stat().st_size == info["size"]:
        return str(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with reported(name):
            fs.get_file(name, str(temporary))
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None and not error.errno:
            raise
        raise InputError(
            f"{name}: cannot be copied to {target.parent}: {error.strerror}; set XDG_CACHE_HOME to a folder with room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return str(target)


def local_folder(name: str, patterns: Sequence[str]) -> Path:
    """Downloads objects of a folder in a bucket, except for those with a current local copy. Returns the local folder.

    Args:
      name: path of the folder in the bucket.
      patterns: glob patterns of the objects to download, relative to the folder.

    Raises:
      InputError: If an object cannot be read, or a copy cannot be written.
    """
    below = objects_below(name)
    found = {key: info for key, info in below.items() if any(fnmatch.fnmatch(key, pattern) for pattern in patterns)}
    versions = "\n".join(f"{key} {version(info)}" for key, info in sorted(found.items()))
    home = copies(name, versions) / name.rstrip("/").rpartition("/")[2]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        copying = (threads.submit(local_copy, f"{name.rstrip('/')}/{key}", (home / key).parent) for key in found)
        for copied in list(copying):
            copied.result()
    return home


def objects_below(name: str) -> dict[str, dict[str, Any]]:
    """Lists all objects below a folder in a bucket.

    Returns:
      A dict that maps the path of each object relative to the folder to its fsspec information, sorted by path.

    Raises:
      InputError: If the folder cannot be listed.
    """
    folder = name.rstrip("/")
    with reported(name, "cannot be listed"):
        found = file_system(name).find(folder, detail=True)
    start = folder.partition("://")[2] + "/"
    return {key.removeprefix(start): info for key, info in sorted(found.items()) if key.startswith(start)}


def upload(folder: Path, name: str | os.PathLike, last: Sequence[str] = ()) -> None:
    """Copies all files below a local folder to a folder in a bucket.

    Args:
      folder: local folder.
      name: path of the folder in the bucket.
      last: names of files to write after all others, such as a file that marks the folder as complete.

    Raises:
      InputError: If an object cannot be written.
    """
    fs, target = file_system(name), os.fspath(name).rstrip("/")
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name in last)
    with reported(name, "cannot be written"):
        for file in files:
            fs.put_file(str(file), f"{target}/{file.relative_to(folder).as_posix()}")


def copies(name: str, version: str) -> Path:
    """Returns the cache folder for local copies of one version of an object or a folder in a bucket."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "objects"
    return home / hashlib.sha256(f"{name}\n{version}".encode()).hexdigest()[:32]


def version(info: dict[str, Any]) -> str:
    """Returns the version of an object from its fsspec information: a generation, an ETag or a modification time."""
    return str(info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime"))
