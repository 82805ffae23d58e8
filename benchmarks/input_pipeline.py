"""Tokens/s of the input pipeline on one core, against what a step of the quickstart consumes.

    python benchmarks/input_pipeline.py

Measures batches of bible/web as in configs/bert_quickstart.py: the first pass, in which every document is
tokenized, and those after it. Both must be ten times faster than the step.
"""

import argparse
import json
import os
import sys
import tempfile
import time

from jaxformer.data.loader import Data, train_batches
from jaxformer.data.sources import Tfds
from jaxformer.data.tasks import MaskedSentencePairs
from jaxformer.data.tokenizers import SentencePiece

GOAL = 10
LENGTH, BATCH = 64, 32
STEPS = 500  # about one pass over the training chapters


def rates(data: Data, tokenizer, passes: int) -> list[float]:
    """Tokens/s of each pass, prefetching included."""
    found = []
    start = time.perf_counter()
    with train_batches(data, tokenizer, seed=0, rows=range(BATCH)) as batches:
        for _ in range(passes):
            for _ in range(STEPS):
                next(batches)
            stop = time.perf_counter()
            found.append(STEPS * BATCH * LENGTH / (stop - start))
            start = stop
    return found


def use_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step_tokens_per_second", type=float, default=25_000.0)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--data_dir", default=None, help="folder of the TFDS data sets")
    arguments = parser.parse_args()

    source = Tfds("bible/web", data_dir=arguments.data_dir)
    task = MaskedSentencePairs(length=LENGTH, predictions=10)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = SentencePiece(4096).build(source.open, os.path.join(folder, "tokenizer"))
    use_one_core()
    first, *later = rates(Data(source, task, BATCH), tokenizer, arguments.passes)
    step = arguments.step_tokens_per_second
    print(f"step        {step:12,.0f} tokens/s")
    print(f"first pass  {first:12,.0f} tokens/s")
    for rate in later:
        print(f"later pass  {rate:12,.0f} tokens/s")
    ratio = min(first, *later) / step
    met = ratio >= GOAL
    result = {"benchmark": "input_pipeline", "ratio": round(ratio, 2), "goal": GOAL, "met": met}
    print(json.dumps(result))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
