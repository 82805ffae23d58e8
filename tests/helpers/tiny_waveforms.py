"""Sounds in place of a config's own, and a config of a model that reads waveforms made small enough for a test."""

import json
from pathlib import Path

import small_speech
import small_whisper

from jaxformer.config import Experiment
from jaxformer.data.sources.sounds import SoundManifest
from jaxformer.parallel.sharding import Mesh

SIZES = {"width": 16, "depth": 1, "heads": 2}


def shrunk(experiment: Experiment) -> dict:
    """Overrides that leave one narrow block, three convolutions, and rows of a tenth of a second."""
    task = experiment.data.task
    small = {f"model.transformer.{field}": size for field, size in SIZES.items()}
    small |= {"model.framing": small_speech.FRAMING, "data.task.framing": small_speech.FRAMING}
    small |= {"model.widths": (8, 8, 8), "model.position_taps": 4, "model.position_groups": 2}
    small |= {"data.task.audio.seconds": 0.1, "data.task.audio.rate": 16_000, "data.task.audio.array_rate": None}
    if hasattr(task, "text"):
        small |= {"data.task.text.length": 16, "objective.scored": min(2, experiment.objective.scored)}
    if hasattr(task, "negatives"):
        small |= {"data.task.negatives": 5, "model.quantizer.entries": 8}
    return small | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": None}


def read_out(experiment: Experiment, folder: Path) -> dict:
    """Short sounds with a few letters each, by the fields of an experiment."""
    found, task = {}, experiment.data.task
    for split in ("train", "validation"):
        paths = [small_whisper.wav(folder / f"{split}{number}.wav", 0.08, number) for number in range(12)]
        texts = [f"{chr(97 + number)}b cd" for number in range(12)]
        examples = [{task.audio.column: path, "text": text} for path, text in zip(paths, texts, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        found[f"data.{split}"] = SoundManifest((str(folder / f"{split}.jsonl"),), audio=task.audio.column)
    return found
