"""Reads `metrics.jsonl`: one JSON object per line, with `step`, `split` (train or the name of an evaluation) and the
metrics.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from jaxformer import strict_json

METRICS = "metrics.jsonl"


def read_history(path: Path, last: float = math.inf, rewrite: bool = False) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, except a last line that is incomplete. null is read as NaN.

    Args:
      path: path of the file. If it does not exist, there are no lines.
      last: last step to read.
      rewrite: whether to remove the lines of later steps from the file, because a resumed run writes these steps again.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_bytes().decode(errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= last and line.endswith("\n"):
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # Cut short by a kill, or damaged.
    if rewrite:
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
    return [strict_json.numbers(json.loads(line)) for line in kept]
