"""A DETR and a YOLOS small enough for a test, and a batch of scenes."""

import jax
import numpy as np
from small_bert import noisy_params

from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.boxes import LabelledBoxes
from jaxformer.layers.backbones import PatchBackbone, ResNet
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.detr import Detr
from jaxformer.models.yolos import Yolos

LABELS = ("cat", "dog", "owl")
SIZE = 16
FIELDS = {"norm": LayerNorm(1e-5), "mlp": Mlp(24, "relu"), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
ENCODER = Transformer(16, 1, 2, norm_position="after", **FIELDS)
DECODER = Transformer(16, 2, 2, norm_position="after", **FIELDS)
DETR = Detr(PatchBackbone(8, 8, (4,), "float32"), ENCODER, DECODER, LABELS, queries=5, image=SIZE)
WITH_RESNET = Detr(ResNet((1, 1), (8, 16), 4, dtype="float32"), ENCODER, DECODER, LABELS, queries=5, image=SIZE)
YOLOS = Yolos(Transformer(12, 2, 2, **FIELDS), LABELS, queries=5, image=SIZE, patch=4)
TASK = LabelledBoxes(ImageField(SIZE, fit="pad"), labels=LABELS, max_boxes=3)


def noisy(model):
    """Parameters drawn at random, none of them 0 or 1. Variances are positive."""

    def positive(path, leaf):
        return abs(leaf) + 0.5 if path[-1].key == "variance" else leaf

    params = noisy_params(model, np.zeros((1, model.image, model.image, 3), np.uint8))
    return jax.tree_util.tree_map_with_path(positive, params)


def scenes(rows=8, seed=0):
    """A batch of random scenes. The second one has no objects, and the third row has no image."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((rows, SIZE, SIZE), np.uint8)
    for row in range(rows):
        mask[row, : SIZE - 4 * (row % 3), : SIZE - 4 * (row % 2)] = 1
    counts = rng.integers(1, 4, rows)
    counts[1:3] = 0
    weights = (np.arange(3) < counts[:, None]).astype(np.float32)
    boxes = rng.uniform(0.2, 0.5, (rows, 3, 4)).astype(np.float32) * weights[..., None]
    return {
        "images": rng.integers(0, 256, (rows, SIZE, SIZE, 3)).astype(np.uint8),
        "pixel_mask": mask,
        "boxes": boxes,
        "labels": (rng.integers(0, 3, (rows, 3)) * weights).astype(np.int32),
        "box_weights": weights,
        "crowd": np.zeros((rows, 3), np.uint8),
        "areas": (boxes[..., 2] * boxes[..., 3] * 2000 * weights).astype(np.float32),
        "image_size": np.tile(np.array([40, 50], np.int32), (rows, 1)),
        "weights": (np.arange(rows) != 2).astype(np.float32)[:, None],
    }
