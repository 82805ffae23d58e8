"""Diffusion Transformers small enough for a test, and drawn images with their names."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from small_clip import PIECES, TOKENIZER

from jaxformer.data.sources.sources import JsonLines
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.dit import Dit, dit_stack

LABELS = ("zero", "one", "two")
STACK = dit_stack(16, 2, 2, dtype="float32")
TEXT = Bert(
    Transformer(
        8, 1, 2, norm=LayerNorm(1e-6), norm_position="before", dropout=0.0, attention_dropout=0.0, dtype="float32"
    ),
    vocab=96,
    max_length=24,
    token_types=0,
    prediction_heads=(),
)
OF_CLASSES = Dit(STACK, LABELS, image=8, patch=4)
OF_TEXTS = Dit(STACK, text=TEXT, image=8, patch=4)
COLORS = {"red": (230, 30, 30), "green": (30, 200, 30)}

assert len(PIECES) <= TEXT.vocab and TOKENIZER.vocab_size == len(PIECES)


def batch_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of random images, tokens, labels and seeds. The last row has no weight."""
    rng = np.random.default_rng(seed)
    segments = (np.arange(6) < rng.integers(2, 7, rows)[:, None]).astype(np.int32)
    weights = np.ones((rows, 1), np.float32)
    weights[-1] = 0
    return {
        "images": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "tokens": np.where(segments, rng.integers(5, len(PIECES), (rows, 6)), 0).astype(np.int32),
        "segments": segments,
        "labels": rng.integers(0, 3, (rows, 2)).astype(np.int32),
        "seeds": rng.integers(0, 2**31, (rows, 1)).astype(np.int32),
        "weights": weights,
    }


def colored(folder: Path, texts=("red", "green")) -> JsonLines:
    """A source of one-colored images, with the texts in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(16):
        text = texts[number % len(texts)]
        path = folder / f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), COLORS.get(text, (9, 9, 9)), np.uint8)).save(path)
        lines.append(json.dumps({"image": str(path), "text": text}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return JsonLines((str(folder / "pairs.jsonl"),))
