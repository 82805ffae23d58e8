"""Reads batches in a process of its own: python loading_process.py FOLDER WORKERS.

Prints the ids of its worker processes after each batch, until a batch does not arrive. Documents take forever once
there is a file "slow" in the folder.
"""

import dataclasses
import multiprocessing
import sys
import time
from pathlib import Path

from jaxformer.data.pipeline import stalls
from jaxformer.data.pipeline.loader import Data, train_batches
from jaxformer.data.sources.sources import Source
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Slow(Source):
    """Documents that are not read to the end while there is a file "slow"."""

    folder: str

    def open(self):
        return Documents(Path(self.folder))


class Documents:
    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        while (self.folder / "slow").exists():
            wait_forever()
        return {"text": "w1 w2 w3"}


def wait_forever():
    time.sleep(0.1)


def main(folder: str, workers: str) -> None:
    data = Data(Slow(folder), NextToken(16), 2, workers=int(workers), prefetch=2, timeout=600.0)
    with train_batches(data, load_tokenizer(f"{folder}/tokenizer"), 0, range(2)) as batches:
        next(batches)  # The first batch may take longer, because the workers start.
        batches._stalls = stalls.Watch(2.0)
        for _ in batches:
            print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
            time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
