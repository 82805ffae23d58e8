"""Seconds from the command to the end of the first training step, with the compilation cache filled.

    python benchmarks/warm_start.py

Starts the quickstart for one step, and again for another one in the same run's folder, where the tokenizer is: as
after any stop. The limit is 15 seconds; the ratio is the limit to the time of the second start.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 15.0
UNBUFFERED = os.environ | {"PYTHONUNBUFFERED": "1"}
ROOT = Path(__file__).parent.parent


def start(folder: str, steps: int) -> float:
    """Seconds from the command to the line that reports the first step."""
    command = [sys.executable, "train.py", "configs/bert_quickstart.py", "--workdir", folder, "--steps", str(steps)]
    command += ["--evaluation.batches", "1"]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=UNBUFFERED) as process:
        for line in process.stdout:
            if line.startswith("first step after"):
                seconds = time.monotonic() - began
        if process.wait():
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return seconds


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        cold = start(f"{folder}/run", 1)
        warm = start(f"{folder}/run", 2)
    print(f"first start {cold:6.1f} s, second {warm:6.1f} s to the end of the first step")
    print(json.dumps({"benchmark": "warm_start", "ratio": round(LIMIT / warm, 2), "goal": 1.0, "met": warm <= LIMIT}))
    return 0 if warm <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
