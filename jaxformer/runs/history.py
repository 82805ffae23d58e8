"""Reads `metrics.jsonl` and `skipped.jsonl`. Each line of `metrics.jsonl` is a JSON object with `step`, `split`
(`train` or the name of an evaluation), the metrics, and a digest of the line.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer import digests, strict_json
from jaxformer.runs.folder import DAMAGED

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
"""Name of the file with one line per skipped step (a step whose gradient was not finite): `step`, losses, gradient
norm, and the state of the data pipeline before the step.
"""


def read_history(path: Path, last: float = math.inf) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the lines of a metrics file, except a last line that was cut short. Metrics that are null in the file
    become NaN.

    Args:
      path: the file. If it is missing, there are no lines.
      last: the last step whose lines are returned.

    Returns:
      The JSON objects of the lines, without their digests, and a message for each line that does not match its digest.
    """
    lines = list(_lines(path))
    values = [strict_json.numbers(json.loads(plain)) for _, plain in lines if plain is not None]
    damaged = [f"{path}: line {number} is damaged" for number, (_, plain) in enumerate(lines, 1) if plain is None]
    return [line for line in values if line["step"] <= last], damaged


def rewrite_history(home: Path, last: float, name: str = METRICS) -> None:
    """Removes the lines of steps after `last` from a file of JSON lines, because a resumed run writes these lines
    again. Damaged lines are moved to a file of the same name in the subfolder `DAMAGED`.

    Args:
      home: folder of the file.
      last: the last step whose lines are kept.
      name: name of the file.
    """
    path, kept, damaged = home / name, [], []
    for line, plain in _lines(path):
        if plain is None:
            damaged.append(line)
        elif json.loads(plain)["step"] <= last:
            kept.append(line)
    if damaged:
        (home / DAMAGED).mkdir(exist_ok=True)
        with (home / DAMAGED / name).open("ab") as file:
            file.writelines(damaged)
    if path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, path)


def _lines(path: Path) -> Iterator[tuple[bytes, str | None]]:
    """Yields (line, JSON text) for each complete line of a metrics file. The JSON text does not contain the line's
    digest. It is None if the line does not match its digest.
    """
    content = path.read_bytes() if path.exists() else b""
    for line in content.split(b"\n")[:-1]:
        yield line + b"\n", digests.unseal_line(line.decode(errors="replace"))
