"""Whether this checkout is as fast as an earlier commit: training steps and decoding of both, in turns, in one run.

    python benchmarks/against_commit.py COMMIT

The sides run `bert_step.py`, `gpt_step.py`, `vit_step.py` and `decode.py` of their own checkout, without PyTorch. Each
benchmark is met where this checkout has at least 0.98 of the commit's speed. Run it on an idle machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import WARM, conclude, surroundings

ROOT = Path(__file__).parent.parent
GOAL = 0.98
STEPS = {
    "bert_step": "bert_step.jaxformer_step()",
    "gpt_step": "gpt_step.jaxformer_step()",
    "vit_step": "vit_step.jaxformer_step()",
    "decode_1_row": "decode.jaxformer_generate(1)",
    "decode_16_rows": "decode.jaxformer_generate(16)",
}
"""The function that makes a step, by the name of the benchmark."""
SERVER = """
import sys, time
import {module}
step = {make}
step()
step()
print("ready", flush=True)
for _ in sys.stdin:
    for _ in range({warm}):
        step()
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start, flush=True)
"""
"""A side: runs steps when it reads a line, and prints the seconds of the last of them."""


class Side:
    """A process that runs steps of one checkout."""

    def __init__(self, checkout: Path, make: str):
        code = SERVER.format(module=make.partition(".")[0], make=make, warm=WARM)
        # Its own library first, not one that is installed.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "benchmarks")])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=checkout,
        )
        self._read()

    def seconds(self) -> float:
        """The seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side ended: {self._process.args[-1]}")
        return line


def compare(name: str, make: str, before: Path, turns: int) -> dict:
    """The result of one benchmark."""
    with surroundings("jaxformer"):
        sides = [Side(checkout, make) for checkout in (ROOT, before)]
    times = [[side.seconds() for side in sides] for _ in range(turns)]
    for side in sides:
        side.close()
    now, then = (statistics.median(column) for column in zip(*times, strict=True))
    # Neighbouring turns see the same machine: the ratio of each pair is steadier than that of the medians.
    ratio = statistics.median(pair[1] / pair[0] for pair in times)
    print(f"{name:15} {now * 1e3:8.1f} ms here   {then * 1e3:8.1f} ms at the commit   {ratio:.3f} times its speed")
    return {"benchmark": f"against_commit/{name}", "ratio": round(ratio, 3), "goal": GOAL, "met": ratio >= GOAL}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--turns", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="the benchmarks to run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        command = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*command, "add", "--quiet", "--detach", str(before), options.commit], check=True)
        try:
            return conclude([compare(name, STEPS[name], before, options.turns) for name in options.only])
        finally:
            subprocess.run([*command, "remove", "--force", str(before)], check=True)


if __name__ == "__main__":
    sys.exit(main())
