"""Conditional writes: an object is written only if its version is the one that was last seen."""

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
    """Somebody else has written or removed the object."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object as it was at one moment."""

    content: bytes
    """Its content."""
    version: str
    """Its generation in Google Cloud Storage, its ETag in S3."""
    age: float
    """Seconds since it was written, by the clock of the server alone."""


def read(path: Path) -> Stored | None:
    """The object of a path; None where there is none, or where it was replaced while it was read."""
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
      path: the object's.
      content: what to write.
      version: the version that it must have; None: it must not be there.

    Raises:
      Changed: it has another one; also where an earlier try of this very request was carried out and its answer lost.
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
    """Removes an object, unless it has another version or is not there."""
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
    """Seconds from `written` to the server's `Date`; both have whole seconds."""
    return (email.utils.parsedate_to_datetime(date) - written).total_seconds()
