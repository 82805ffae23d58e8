"""Tokens a second of the input pipeline on one core, beside what the quickstart's training step consumes on all.

    python benchmarks/input_pipeline.py

Reads batches as in configs/bert_quickstart.py: the first pass over the chapters, in which every one is tokenized, and
those after it. The slowest must be ten times faster than the step, which is timed in the same run.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
from turns import use_one_core

import jaxformer as jf
from jaxformer.data.pipeline.loader import Data, train_batches
from jaxformer.parallel.sharding import global_batch, make_mesh
from jaxformer.training import host
from jaxformer.training.loop import compile_step
from jaxformer.training.state import abstract_state, init_state

GOAL = 10
CONFIG = Path(__file__).parent.parent / "configs" / "bert_quickstart.py"
STEPS = 500  # About one pass over the training chapters.


def step_rate(experiment: jf.Experiment, tokenizer, seconds: float) -> float:
    """Tokens a second of the training step, its data at hand."""
    rows, mesh = range(experiment.data.batch), make_mesh(experiment.mesh)
    with train_batches(experiment.data, tokenizer, experiment.seed, rows) as batches:
        batch = global_batch(next(batches)[0], rows, len(rows), mesh)
    step, state = compile_step(experiment, mesh), init_state(experiment, abstract_state(experiment, mesh))
    state, means = step(state, batch)
    jax.block_until_ready(means)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        state, means = step(state, batch)
        jax.block_until_ready(means)
        count += 1
    return count * batch["tokens"].size / (time.perf_counter() - start)


def pipeline_rates(data: Data, tokenizer, passes: int) -> list[float]:
    """Tokens a second of each pass, prefetching included."""
    found, rows = [], range(data.batch)
    start = time.perf_counter()
    with train_batches(data, tokenizer, seed=0, rows=rows) as batches:
        for _ in range(passes):
            for _ in range(STEPS):
                next(batches)
            stop = time.perf_counter()
            found.append(STEPS * data.batch * data.task.length / (stop - start))
            start = stop
    return found


def main() -> int:
    host.restart_with_huge_pages()  # As the command line does.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=4, help="passes over the chapters")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to time the training step")
    options = parser.parse_args()
    experiment = jf.load(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = experiment.tokenizer.build(experiment.data.train.open, os.path.join(folder, "tokenizer"))
    step = step_rate(experiment, tokenizer, options.seconds)
    use_one_core()
    first, *later = pipeline_rates(experiment.data, tokenizer, options.passes)
    print(f"step        {step:12,.0f} tokens/s")
    print(f"first pass  {first:12,.0f} tokens/s")
    for rate in later:
        print(f"later pass  {rate:12,.0f} tokens/s")
    ratio = min([first, *later]) / step
    print(json.dumps({"benchmark": "input_pipeline", "ratio": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL}))
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
