"""Sounds in place of a config's own, and the config made small enough for a test."""

import dataclasses
import json
import tempfile
from pathlib import Path

import small_whisper

from jaxformer.config import Experiment
from jaxformer.data.sources.sounds import SoundManifest
from jaxformer.data.tokenizers.configs import ByteLevelBpe
from jaxformer.parallel.sharding import Mesh

SIZES = {"width": 16, "depth": 1, "heads": 2}


def shrunk(experiment: Experiment) -> dict:
    """Overrides that leave one narrow block, and windows of two seconds."""
    small = {f"model.{side}.{field}": size for side in ("encoder", "decoder") for field, size in SIZES.items()}
    small |= {"model.frames": small_whisper.FRAMES, "model.mels": small_whisper.MELS, "model.vocab": 500}
    log_mel = dataclasses.replace(experiment.data.task.audio.log_mel, mels=small_whisper.MELS)
    small |= {"data.task.audio.seconds": 2.0, "data.task.audio.log_mel": log_mel, "data.task.text.length": 64}
    small |= {"objective.scored": min(2, experiment.objective.scored), "objective.decoding.max_new_tokens": 4}
    if experiment.data.task.translation is not None:
        small |= {"data.task.translation.length": 64, "objective.translated": 2}
    tokenizer = Path(tempfile.mkdtemp()) / "tokenizer.json"
    tokenizer.write_text(small_whisper.tokenizer_json())
    small |= {"tokenizer": ByteLevelBpe(path=str(tokenizer)), "data.batch": 8, "data.workers": 0}
    return small | {"steps": 2, "mesh": Mesh(1), "init": None}


def read_out(experiment: Experiment, folder: Path) -> dict:
    """Short sounds with a line of the folder's texts each, by the fields of an experiment."""
    found, task = {}, experiment.data.task
    for split in ("train", "validation"):
        lines = [line[:40] for line in (folder / f"{split}.txt").read_text().split("\n") if line][:12]
        paths = [small_whisper.wav(folder / f"{split}{number}.wav", 0.3, number) for number in range(len(lines))]
        examples = [{task.audio.column: path, task.text.column: line} for path, line in zip(paths, lines, strict=True)]
        if task.translation is not None:
            examples = [one | {task.translation.column: line[::-1]} for one, line in zip(examples, lines, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        found[f"data.{split}"] = SoundManifest((str(folder / f"{split}.jsonl"),), audio=task.audio.column)
    return found
