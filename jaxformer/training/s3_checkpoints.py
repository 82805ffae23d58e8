"""Makes Orbax save checkpoints to S3. Orbax only supports local folders and gs://, although TensorStore, which it uses,
supports S3.

Replaces the three Orbax functions that describe a path to TensorStore by functions that also accept s3:// paths. If
another version of Orbax lacks these functions, only checkpoints in S3 fail, with a one-line error.
"""

import functools
import os
from typing import Any

from jaxformer.errors import InputError

S3 = "s3://"


@functools.cache
def enable() -> None:
    """Replaces the Orbax functions that describe a path to TensorStore, so that they accept s3:// paths.

    Raises:
      InputError: If the installed version of Orbax does not have these functions.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils as specs

    replaced = {specs: ("_use_gcs_driver", "_normalize_path"), gcs_utils: ("get_kvstore_for_gcs",)}
    for module, names in replaced.items():
        for name in names:
            if not hasattr(module, name):
                raise InputError(f"checkpoints in S3: {module.__name__} has no {name}; install orbax-checkpoint 0.12.8")
    uses_gcs, normalize, of_gcs = specs._use_gcs_driver, specs._normalize_path, gcs_utils.get_kvstore_for_gcs
    specs._use_gcs_driver = lambda directory: directory.startswith(S3) or uses_gcs(directory)
    specs._normalize_path = lambda path: path.rstrip("/") if path.startswith(S3) else normalize(path)
    gcs_utils.get_kvstore_for_gcs = lambda path: kvstore(path) if path.startswith(S3) else of_gcs(path)


def kvstore(path: str) -> dict[str, Any]:
    """Returns the TensorStore spec of an S3 path. Endpoint and region come from the AWS environment variables."""
    bucket, _, key = path.removeprefix(S3).partition("/")
    named: dict[str, Any] = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    if "AWS_ACCESS_KEY_ID" in os.environ:  # Otherwise TensorStore tries all sources, and logs each one that fails.
        named["aws_credentials"] = {"type": "environment"}
    return {"driver": "s3", "bucket": bucket, "path": key} | {name: value for name, value in named.items() if value}
