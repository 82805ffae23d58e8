"""Limits for files that may come from others: weights, configs, tokenizers, pictures and sounds.

A small file can describe a huge object, which would take all memory or many minutes. Each limit has an environment
variable, `JAXFORMER_MAX_...`, by which it can be raised.
"""

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxformer.errors import InputError

_PREFIX = "JAXFORMER_MAX_"


@dataclasses.dataclass(frozen=True)
class Limit:
    """Limit of one quantity."""

    name: str
    """Last part of the name of the environment variable."""
    default: int
    """Value of the limit if the variable is not set."""
    unit: str
    """Noun in the plural for messages, such as `pixels`."""

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return _PREFIX + self.name

    @property
    def value(self) -> int:
        """Current value of the limit. Raises InputError if the variable does not contain a whole number."""
        text = os.environ.get(self.variable, "")
        if text and not text.isdigit():
            raise InputError(f"{self.variable}={text}: expected a whole number of {self.unit}")
        return int(text) if text else self.default

    def problem(self, found: int) -> str:
        """Describes that `found` is above the limit. Returns an empty string if it is not."""
        if found <= (most := self.value):
            return ""
        return f"{found:,} {self.unit}; expected at most {most:,}, or a larger {self.variable}"

    def check(self, found: int, what: str) -> None:
        """Raises InputError if `found` is above the limit. `what` is the start of the message, such as a path."""
        if problem := self.problem(found):
            raise InputError(f"{what}: {problem}")


HEADER = Limit("HEADER_BYTES", 25_000_000, "bytes in the header")
"""Size of the header of a safetensors file. The format permits 100 MB; a model with 10,000 tensors needs 1 MB."""
JSON = Limit("JSON_BYTES", 256_000_000, "bytes of JSON")
"""Size of a JSON file of a Hugging Face folder or a tokenizer."""
ENTRIES = Limit("ENTRIES", 1_000_000, "entries")
"""Number of values in a Flax checkpoint, besides the numbers in its arrays, of files in a PyTorch archive, and of
objects in its pickle.
"""
LAYERS = Limit("LAYERS", 10_000, "layers")
"""Number of layers in a config.json."""
VOCABULARY = Limit("VOCABULARY", 10_000_000, "token ids")
"""Number of token ids of a tokenizer. One large id needs memory for all ids below it."""
PIXELS = Limit("PIXELS", 100_000_000, "pixels")
"""Number of pixels of a picture, which takes up to 15 bytes for each while it is decoded."""
SAMPLES = Limit("SAMPLES", 2**29, "samples")
"""Number of samples of a sound, of all channels together, which takes 8 bytes for each while it is decoded."""
EXPANSION = Limit("EXPANSION", 20, "times its size when it is decompressed")
"""Ratio of the size of a PyTorch archive's content to the size of the archive, which stores its content as it is."""
ALL = (HEADER, JSON, ENTRIES, LAYERS, VOCABULARY, PIXELS, SAMPLES, EXPANSION)


def check_file(path: Path) -> int:
    """Returns the size of a file in bytes. Raises InputError if it is not a regular file: opening a pipe would wait for
    its other end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file")
    return status.st_size


def parse_json(content: bytes | str, what: str, **options: Any) -> Any:
    """Parses JSON from a file.

    Args:
      content: the JSON.
      what: start of the error message, such as the path of the file.
      options: options of `json.loads`.

    Raises:
      InputError: If the content is not JSON, is nested too deeply or too large.
    """
    JSON.check(len(content), what)
    try:
        return json.loads(content, **options)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{what}: expected JSON: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{what}: expected JSON: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Returns the message of an error on one line of at most 300 characters, or its type if it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
