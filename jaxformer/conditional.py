"""Conditional writes: an object is written only if it still has the version that was last seen."""

import dataclasses
import datetime
import email.utils
import functools
import json
import os
from pathlib import Path
from typing import Any

from jaxformer import storage


class Changed(Exception):
    """Error if another process has written or removed the object."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object at one moment."""

    content: bytes
    """Content of the object."""
    version: str
    """Generation of the object in Google Cloud Storage, or its ETag in S3."""
    age: float
    """Seconds since the object was written, by the clock of the server."""


def read(path: Path) -> Stored | None:
    """Reads the object at a path. Returns None if it does not exist, or was replaced during the read."""
    fs, bucket, key = _located(path)
    try:
        if _is_gcs(path):
            headers, resource = fs.call("GET", "b/{}/o/{}", bucket, key)
            said = json.loads(resource)
            _, content = fs.call("GET", "b/{}/o/{}", bucket, key, alt="media", generation=said["generation"])
            written = datetime.datetime.fromisoformat(said["updated"])
            return Stored(content, said["generation"], _age(headers["Date"], written))
        return _run(fs, _read_s3(fs, bucket, key))
    except FileNotFoundError:
        return None


def write(path: Path, content: bytes, version: str | None) -> str:
    """Writes an object and returns its new version.

    Args:
      path: path of the object.
      content: the new content.
      version: version that the object must have. If None, the object must not exist.

    Raises:
      Changed: If it has another version. Also if an earlier attempt of the same request succeeded but its response was
        lost.
    """
    fs, bucket, key = _located(path)
    try:
        if _is_gcs(path):
            upload = f"{fs._location}/upload/storage/v1/b/{{}}/o"
            post = functools.partial(fs.call, "POST", upload, bucket, data=content, json_out=True)
            return post(uploadType="media", name=key, ifGenerationMatch=version or "0")["generation"]
        put = functools.partial(fs.call_s3, "put_object", Bucket=bucket, Key=key, Body=content)
        return (put(IfNoneMatch="*") if version is None else put(IfMatch=version))["ETag"]
    except (FileExistsError, FileNotFoundError) as error:
        raise Changed(str(path)) from error
    except OSError as error:
        answer = getattr(error.__cause__, "response", {})  # botocore's, whose codes s3fs turns into other errors.
        if answer.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise Changed(str(path)) from error
        raise


def remove(path: Path, version: str) -> None:
    """Removes an object, unless it has another version or does not exist."""
    fs, bucket, key = _located(path)
    try:
        if _is_gcs(path):
            fs.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=version)
        else:
            fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)
    except OSError:
        return


def _located(path: Path) -> tuple[Any, str, str]:
    bucket, _, key = os.fspath(path).partition("://")[2].partition("/")
    return storage.file_system(path), bucket, key


def _is_gcs(path: Path) -> bool:
    return os.fspath(path).startswith("gs://")


def _run(fs: Any, coroutine: Any) -> Any:
    from fsspec import asyn

    return asyn.sync(fs.loop, lambda: coroutine)


async def _read_s3(fs: Any, bucket: str, key: str) -> Stored:
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        content = await body.read()
    date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
    return Stored(content, answer["ETag"], _age(date, answer["LastModified"]))


def _age(date: str, written: datetime.datetime) -> float:
    """Returns the seconds from `written` to the server's `Date`. Both are in whole seconds."""
    return (email.utils.parsedate_to_datetime(date) - written).total_seconds()
