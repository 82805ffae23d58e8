"""The script that measures on accelerators runs on a CPU with tiny models, so that no time of a device is lost."""

import json
import os
import subprocess
import sys

import pytest
import tiny

pytestmark = pytest.mark.slow


def test_each_row_is_measured():
    command = [sys.executable, "mfu.py", "--toy", "--no_torch", "llama", "bert-large, 128", "vit", "t5"]
    process = subprocess.run(
        command, cwd=tiny.ROOT / "benchmarks", env=os.environ | tiny.flags(), capture_output=True, text=True
    )
    results = json.loads(process.stdout.splitlines()[-1])
    names = [result["benchmark"] for result in results]
    assert names == [f"mfu/{row}" for row in ("llama-1b, 2048", "bert-large, 128", "vit-b16, 224", "t5-base, 512")]
    assert all(result["speed"] > 0 and 0 < result["utilisation"] < 2 for result in results), process.stdout
