"""Enables Orbax to write to S3. Orbax itself supports only local folders and gs://, although TensorStore supports S3.

Three functions of Orbax, which describe a path for TensorStore, are replaced by functions that support s3:// too. If a
later version of Orbax has other functions, saving to S3 fails with a one-line error, and nothing else changes.
"""

import functools
import os
from typing import Any

from jaxformer.errors import InputError

S3 = "s3://"


@functools.cache
def enable() -> None:
    """Replaces the functions.

    Raises:
      InputError: If this version of Orbax has no functions of these names.
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
    """Returns TensorStore's description of a path in S3, with the endpoint and region of the AWS environment
    variables.
    """
    bucket, _, key = path.removeprefix(S3).partition("/")
    named: dict[str, Any] = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    if "AWS_ACCESS_KEY_ID" in os.environ:  # Otherwise it looks in all places, and reports each where there is none.
        named["aws_credentials"] = {"type": "environment"}
    return {"driver": "s3", "bucket": bucket, "path": key} | {name: value for name, value in named.items() if value}
