"""Helpers for tests of classifiers: a corpus with labels, a small classifier of it, an experiment with both."""

import json
from pathlib import Path

import numpy as np
from small_bert import small_bert

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tokenizers import WordPiece
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.optimizers import AdamW, Schedule

LABELS = ("bad", "good")
WORDS = {"bad": ("awful", "dull", "poor"), "good": ("fine", "great", "warm")}
OTHERS = ("a", "the", "film", "plot", "and", "but", "is", "it")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS["bad"], *WORDS["good"], *OTHERS]


def write_reviews(folder: Path) -> None:
    """`train.jsonl`, `validation.jsonl` of {"text", "label"} whose words decide the label, and a `vocab.txt`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 21)):
        lines = []
        for _ in range(count):
            label = LABELS[rng.integers(2)]
            words = [*rng.choice(WORDS[label], rng.integers(1, 4)), *rng.choice(OTHERS, rng.integers(1, 6))]
            lines.append(json.dumps({"text": " ".join(rng.permutation(words)), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "vocab.txt").write_text("\n".join(PIECES))


def small_backbone(**fields) -> Bert:
    """A BERT with a pooler alone, for these words."""
    return Bert(small_bert(**fields).transformer, vocab=len(PIECES), max_length=16, prediction_heads=("pooler",))


def review_experiment(folder: Path, steps=6, **fields) -> Experiment:
    """An experiment on the reviews in the folder; `fields` are its own."""
    data = Data(
        train=JsonLines((str(folder / "train.jsonl"),)),
        validation=JsonLines((str(folder / "validation.jsonl"),)),
        task=Classify(labels=LABELS, length=12),
        batch=8,
    )
    defaults = {
        "model": Classifier(small_backbone(), LABELS),
        "objective": Classification(),
        "tokenizer": WordPiece(path=str(folder / "vocab.txt")),
        "optimizer": AdamW(Schedule(3e-3, warmup=5)),
        "evaluation": Evaluation(every=2),
        "checkpoint": Checkpoint(every=2),
        "log": Log(every=1),
        "mesh": Mesh(2),  # With eight, each save would cut most arrays into eight parts.
    }
    return Experiment(data=data, steps=steps, **(defaults | fields))
