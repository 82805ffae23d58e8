"""Conditional access to objects in cloud storage buckets: writes or removes an object only if no other process has
changed it.
"""

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
    """Raised if an object in a bucket does not have the expected version, because another process has written or
    removed it.
    """


@dataclasses.dataclass(frozen=True)
class Stored:
    """Snapshot of an object in a bucket: its content, version and age when it was read."""

    content: bytes
    """Content of the object."""
    version: str
    """Generation number of the object in Google Cloud Storage, or its ETag in S3."""
    age: float
    """Number of seconds between the last write of the object and this read, according to the server's clock."""


def read(path: Path) -> Stored | None:
    """Reads the object at a path. Returns None if there is no object, or if it was replaced during the read."""
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
      version: expected current version of the object. If None, the object must not exist.

    Raises:
      Changed: If the object has another version. This also happens if the client retries a request that succeeded but
        whose response was lost.
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
        answer = getattr(error.__cause__, "response", {})  # The botocore error, which has the original error code.
        if answer.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise Changed(str(path)) from error
        raise


def remove(path: Path, version: str) -> None:
    """Removes an object if its current version is `version`. Otherwise, or if the request fails, does nothing."""
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
    """Returns the age of an object in seconds, by the clock of the server.

    Args:
      date: the `Date` header of the server's response.
      written: when the object was last written.
    """
    return max(0.0, (email.utils.parsedate_to_datetime(date) - written).total_seconds())
