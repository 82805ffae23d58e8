"""A corpus, a config file and commands small enough for a test, and what a run has left, as NumPy arrays."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxformer import config
from jaxformer.data.pipeline import loader
from jaxformer.layers.transformer import Transformer
from jaxformer.parallel import sharding
from jaxformer.runs import writing
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.state import abstract_state

ROOT = Path(__file__).parents[2]

WORDS = (
    "the",
    "a",
    "dog",
    "cat",
    "sun",
    "moon",
    "sea",
    "king",
    "ran",
    "saw",
    "had",
    "gave",
    "old",
    "and",
    "then",
    "to",
)

CONFIG = '''
"""A BERT of two thin layers on a few made-up sentences."""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tokenizers import WordPiece
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.training.optimizers import AdamW, Schedule

experiment = Experiment(
    model=Bert(Transformer(width=16, depth=2, heads=2, norm_position="after"), vocab=128, max_length=32),
    objective=MaskedLM(),
    data=Data(
        train=TextFiles(("{folder}/train.txt",)),
        validation=TextFiles(("{folder}/validation.txt",)),
        task=MaskedSentencePairs(length=32, predictions=5),
        batch=8,
    ),
    tokenizer=WordPiece(vocab=120),
    optimizer=AdamW(schedule=Schedule(peak=1e-2, warmup=5)),
    steps=24,
    evaluation=Evaluation(every=12),
    checkpoint=Checkpoint(every=4),
    log=Log(every=1),
)
'''

PACKED = ("--data.pack", "True", "--data.task.examples_per_row", "4", "--data.task.length", "32")


def write_texts(path: Path, documents: int, seed: int) -> None:
    """Documents of four to eight sentences over `WORDS`, a sentence a line, a blank line between two documents."""
    rng = np.random.default_rng(seed)

    def sentence():
        return " ".join(rng.choice(WORDS, rng.integers(2, 7))).capitalize() + "."

    texts = ["\n".join(sentence() for _ in range(rng.integers(4, 9))) for _ in range(documents)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def write_corpus(folder: Path) -> Path:
    """Writes both texts and the config file, whose path it returns."""
    write_texts(folder / "train.txt", 200, seed=0)
    write_texts(folder / "validation.txt", 21, seed=1)
    (folder / "tiny.py").write_text(CONFIG.replace("{folder}", str(folder)), encoding="utf-8")
    return folder / "tiny.py"


def flags(devices: int = 1) -> dict[str, str]:
    """The variable with the options of XLA for a process of its own with simulated devices."""
    return {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")}


def start(*arguments: object, devices: int = 1) -> subprocess.Popen:
    """`python train.py ARGUMENTS` in a process of its own with simulated devices."""
    environment = os.environ | flags(devices)
    command = [sys.executable, ROOT / "train.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), env=environment, text=True, **pipes)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for the end, which must have this exit status; what was printed."""
    with process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()  # One that hangs.
    assert process.returncode == status, f"{process.args} ended with {process.returncode}:\n{out}\n{err}"
    return out + err


def wait_for(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Returns when something has happened; fails if the process ends first."""
    while not happened():
        assert process.poll() is None, "ended too early:\n" + finish(process, process.returncode)
        time.sleep(0.002)


def metrics(folder: Path, split: str = "train") -> list[dict]:
    """The lines of `metrics.jsonl` of one split, without their digests."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [values for values in lines if values.pop("digest") and values["split"] == split]


def step_reached(folder: Path) -> int:
    """The last step that a run, perhaps still running, has logged."""
    with contextlib.suppress(OSError):
        return (folder / "metrics.jsonl").read_bytes().count(b'"split": "train"')
    return 0


def saved(folder: Path, step: int | None = None) -> dict:
    """All that a checkpoint holds, by path, as NumPy arrays; by default the latest checkpoint's."""
    experiment, mesh = writing.read_experiment(folder), sharding.make_mesh(sharding.Mesh())
    lanes = loader.initial_state(experiment.data)
    trees = abstract_state(experiment, mesh).trees() | {"lanes": {"lanes": replicated(lanes.shape, lanes.dtype, mesh)}}
    restored = Checkpoints(folder / CHECKPOINTS).restore(trees, step)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(restored)}


def assert_equal(one: dict, other: dict, **tolerance: float) -> None:
    """Both have the same arrays: to the bit, or to a tolerance of `np.testing.assert_allclose`."""
    assert one.keys() == other.keys()
    for path in one:
        compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
        compare(one[path], other[path], err_msg=path, **tolerance)


def load(file: Path, **overrides: object) -> config.Experiment:
    """The experiment of a config file with some fields overridden; `__` stands for a dot."""
    return config.load(file, {name.replace("__", "."): value for name, value in overrides.items()})


def shallow(module: nn.Module, depth: int) -> nn.Module:
    """Returns the same model with stacks of `depth` blocks, or of that many periods of blocks."""
    changed = {"depth": depth * max(1, len(module.period))} if isinstance(module, Transformer) else {}
    for field in dataclasses.fields(module):
        part = getattr(module, field.name, None)
        if isinstance(part, nn.Module) and field.name != "parent":
            changed[field.name] = shallow(part, depth)
    return dataclasses.replace(module, **changed)
