"""A small model of images and texts, and a run of it in memory on drawn pictures."""

from pathlib import Path

import jax
import numpy as np
from small_bert import noisy_params

from jaxformer.config import Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.fields.text import TextField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.configs import WordPiece
from jaxformer.data.tokenizers.special_tokens import SPECIALS
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.layers.transformer import Transformer
from jaxformer.models.clip import Clip, ImageTower, TextTower
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule

STACK = Transformer(16, 1, 2, dropout=0.0, attention_dropout=0.0)
LETTERS = [*"abcdefghijklmnopqrstuvwxyz.!?,0123456789", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
PIECES = [*SPECIALS, *LETTERS, "red", "green", "the"]
TOKENIZER = WordPieceTokenizer(training.wordpiece({piece: i for i, piece in enumerate(PIECES)}, True).to_str())
VISION = ImageTower(STACK, image=8, patch=4)
LENGTH = 40
SOFTMAX = Clip(VISION, TextTower(STACK, vocab=len(PIECES), max_length=LENGTH), width=12)
SIGMOID = Clip(
    ImageTower(STACK, image=8, patch=4, pooling="attention", embedding_norm=False, patch_bias=True),
    TextTower(STACK, vocab=len(PIECES), max_length=LENGTH, causal=False, pad_id=TOKENIZER.pad_id),
    width=None,
    init_bias=-1.0,
)
TASK = ImageTextPairs(ImageField(8), TextField(length=LENGTH))


def small_run(model: Clip, folder: Path) -> Run:
    """A run of the model with random parameters."""
    objective = ImageTextContrastive("softmax" if model.init_bias is None else "sigmoid")
    data = Data(TextFiles(("never read",)), TASK, 4)
    experiment = Experiment(model, objective, data, WordPiece(), AdamW(Schedule(1e-3)), steps=1)
    inputs = np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 4), np.int32)
    params = jax.device_put(noisy_params(model, *inputs))
    return Run(folder, experiment, TOKENIZER, 0, params, make_mesh(Mesh(1), jax.devices()[:1]))
