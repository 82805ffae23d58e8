"""Small sounds with phonemes and their times, a small model that learns to speak them, and configs made as small."""

import json
from pathlib import Path

import numpy as np
from small_whisper import RATE

from jaxformer.config import Experiment
from jaxformer.data.fields.sound import write_wav
from jaxformer.data.sources.sounds import SoundManifest
from jaxformer.data.tokenizers import Characters
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.layers.conv_mlp import ConvMlp
from jaxformer.parallel.sharding import Mesh

LOG_MEL = LogMel(16, RATE, 512, 256, 80.0, 7600.0, "synthesis", 1e-3)
SECONDS = 0.64
FRAMES = round(SECONDS * RATE) // LOG_MEL.hop
SPEAKER = 5
"""Size of the vector of a speaker."""
PITCHES = {"a": 200.0, "o": 300.0}
"""Frequencies in Hz of the tones that stand for phonemes. An empty phoneme is silence."""
TEXTS = ("ao", "oa", "aoa", "a")


def spoken(text: str) -> tuple[np.ndarray, list[str], list[float]]:
    """The sound of a text, its phonemes with a pause at the end, and their starts in seconds."""
    parts, starts = [], []
    for number, letter in enumerate(text):
        times = np.arange(round((0.1 + 0.02 * number) * RATE)) / RATE
        starts.append(sum(map(len, parts)) / RATE)
        harmonics = sum(np.sin(2 * np.pi * PITCHES[letter] * order * times) / order for order in (1, 2, 3))
        parts.append(0.2 * harmonics)
    starts.append(sum(map(len, parts)) / RATE)
    return np.concatenate([*parts, np.zeros(RATE // 20)]).astype(np.float32), [*text, ""], starts


def source(folder: Path) -> SoundManifest:
    """A manifest with the sounds of all texts, their phonemes, and the vector of a speaker."""
    lines = []
    for text in TEXTS:
        samples, phonemes, starts = spoken(text)
        write_wav(folder / f"{text}.wav", samples, RATE)
        one = {"audio": f"{text}.wav", "text": text, "phonemes": phonemes, "phoneme_starts": starts}
        lines.append(json.dumps(one | {"speaker": [0.5] * SPEAKER}))
    (folder / "speech.jsonl").write_text("\n".join(lines))
    return SoundManifest((str(folder / "speech.jsonl"),))


def sources(folder: Path) -> dict:
    """The sounds in place of a config's own."""
    return dict.fromkeys(("data.train", "data.validation"), source(folder))


def shrunk(experiment: Experiment) -> dict:
    """Overrides that leave one narrow block, and rows of less than a second."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "dtype": "float32"}
    if "durations" in experiment.data.task.row:
        small = {"model.frames": FRAMES, "model.vocab": 16, "model.predictor_width": 16, "data.task.phonemes.length": 8}
        sizes["mlp"] = ConvMlp(16, 3)
    else:
        small = {"model.speaker_size": SPEAKER, "data.task.speaker.length": SPEAKER, "data.task.text.length": 16}
        small |= {"model.prenet_width": 8, "model.postnet_width": 8, "model.vocab": 40, "tokenizer": Characters()}
    small |= {f"model.{side}.{field}": size for side in ("encoder", "decoder") for field, size in sizes.items()}
    small |= {"data.task.audio.seconds": SECONDS, "data.task.audio.log_mel": LOG_MEL, "model.mels": LOG_MEL.mels}
    return small | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": None}
