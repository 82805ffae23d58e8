"""Training steps with products in narrower types: their speed on CPU, beside PyTorch's autocast, and their loss.

    pip install '.[torch,quantize]'
    python benchmarks/narrow_products.py               # the steps of three benchmarks, in turns
    python benchmarks/narrow_products.py --loss 300    # the loss of gpt_quickstart after 300 steps with every type

The steps are those of `float32` and `bfloat16_products` here, and of float32 and bfloat16 autocast in PyTorch (eager).
Only processors with AVX512-BF16 or AMX multiply bfloat16 faster than float32. The losses are on held-out chapters, as
differences from float32's, beside the largest difference between seeds.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import OURS, conclude, take_turns, training_step

STEPS = ("bert_step", "gpt_step", "vit_step")
KINDS = ("float32", "bfloat16", "bfloat16_products", "int8", "float8")
SEEDS = (1, 2)
GOAL = 1.0
"""`bfloat16_products` is at least as fast as float32 here."""


def ours(name: str, kind: str) -> Callable[[], None]:
    """Our training step of a benchmark, with another type."""
    module: Any = importlib.import_module(name)
    experiment = (getattr(module, "experiment", None) or module.vit_experiment)()
    model = experiment.model.map_stacks(lambda stack: stack.clone(dtype=kind))
    return training_step(dataclasses.replace(experiment, model=model), module.random_batch())


def theirs(name: str, autocast: bool) -> Callable[[], None]:
    """PyTorch's step of a benchmark, eager."""
    import torch

    make = importlib.import_module(name).torch_step
    step = make(**dict.fromkeys(inspect.signature(make).parameters, False))

    def cast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return cast if autocast else step


def compare_speed(turns: int) -> list[dict]:
    """Prints the seconds of the steps of each side, and returns the ratios to float32."""
    results = []
    for name in STEPS:
        sides = {f"{OURS} {kind}": functools.partial(ours, name, kind) for kind in ("float32", "bfloat16_products")}
        sides |= {
            f"torch {kind}": functools.partial(theirs, name, kind != "float32") for kind in ("float32", "autocast")
        }
        seconds = take_turns(sides, turns)
        for side, time in seconds.items():
            print(f"{name:10} {side:28} {time * 1e3:7.0f} ms a step", flush=True)
        narrow = seconds[f"{OURS} bfloat16_products"]
        ratio = seconds[f"{OURS} float32"] / narrow
        beside = seconds["torch autocast"] / narrow
        results.append(
            {
                "benchmark": name,
                "ratio": round(ratio, 3),
                "goal": GOAL,
                "met": ratio >= GOAL,
                "autocast": round(beside, 2),
            }
        )
    return results


def compare_losses(steps: int) -> None:
    """Trains gpt_quickstart with each type and seed, and prints the held-out losses as differences from float32's."""
    import jaxformer as jf

    losses: dict[str, list[float]] = {}
    for kind in KINDS:
        for seed in SEEDS:
            settings = {"model.transformer.dtype": kind, "seed": seed, "steps": steps, "evaluation.every": steps}
            with tempfile.TemporaryDirectory() as folder:
                run = jf.fit(jf.load("gpt_quickstart", settings), Path(folder) / "run", quiet=True)
                held_out = [line["loss"] for line in run.history if line.get("split") == "validation"]
            losses.setdefault(kind, []).append(held_out[-1])
        mean = statistics.mean(losses[kind]) - statistics.mean(losses["float32"])
        print(f"{kind:18} {statistics.mean(losses[kind]):.4f}  {mean:+.4f}  {losses[kind]}", flush=True)
    spread = max(max(values) - min(values) for values in losses.values())
    print(f"largest difference between seeds: {spread:.4f}")


def main() -> int:
    """Runs one of the two comparisons; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=11, help="timed steps of each side")
    parser.add_argument("--loss", type=int, metavar="STEPS", help="compare losses after this many steps instead")
    options = parser.parse_args()
    if options.loss:
        compare_losses(options.loss)
        return 0
    return conclude(compare_speed(options.turns))


if __name__ == "__main__":
    sys.exit(main())
