"""Helpers for tests of extractive summaries: documents with one sentence as summary, and an experiment."""

import json
from pathlib import Path

import numpy as np
from small_bert import small_transformer

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.tokenizers import WordPiece
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.extractive_summarization import ExtractiveSummarization
from jaxformer.training.optimizers import AdamW, Schedule

WORDS = [f"w{number}" for number in range(20)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "here", *WORDS]


def documents(count: int, seed: int) -> list[dict[str, str]]:
    """Documents of two to five sentences; the summary has the words of the one that begins with "Here"."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sentences = [list(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(rng.integers(2, 6))]
        key = int(rng.integers(len(sentences)))
        summary = " ".join(sentences[key])
        sentences[key] = ["here", *sentences[key]]
        text = " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)
        found.append({"document": text, "summary": summary})
    return found


def write_documents(folder: Path) -> None:
    """`train.jsonl`, `validation.jsonl` of documents with summaries, and a `vocab.txt` of their words."""
    for seed, (split, count) in enumerate((("train", 96), ("validation", 40))):
        lines = [json.dumps(one) for one in documents(count, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "vocab.txt").write_text("\n".join(PIECES))


def small_classifier(max_length=40, **fields) -> Classifier:
    """A classifier of tokens with one label."""
    backbone = Bert(small_transformer(**fields), vocab=len(PIECES), max_length=max_length, prediction_heads=())
    return Classifier(backbone, ("in the summary",), "none", dropout=0.0)


def summary_experiment(folder: Path, steps=6, **fields) -> Experiment:
    """An experiment on the documents in the folder; `fields` are its own."""
    data = Data(
        train=JsonLines((str(folder / "train.jsonl"),)),
        validation=JsonLines((str(folder / "validation.jsonl"),)),
        task=SummarySentences(40, 8, oracle_sentences=1),
        batch=8,
        pack=True,
    )
    defaults = {
        "model": small_classifier(),
        "objective": ExtractiveSummarization(num_sentences=1),
        "tokenizer": WordPiece(path=str(folder / "vocab.txt")),
        "optimizer": AdamW(Schedule(1e-2, warmup=5)),
        "evaluation": Evaluation(every=2),
        "checkpoint": Checkpoint(every=2),
        "log": Log(every=1),
    }
    return Experiment(data=data, steps=steps, **(defaults | fields))
