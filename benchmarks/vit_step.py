"""One training step of a ViT here and in PyTorch: images a second, in turns, in one run.

    pip install '.[torch]' && python benchmarks/vit_step.py

The same model on both sides: ViT-Ti/16 (12 layers × 192, 3 heads) on 32 images of 96 × 96 pixels, 1,000 classes,
dropout 0, AdamW with clipping, float32. PyTorch's side is transformers' ViTForImageClassification, eager and through
torch.compile. Each side has a process of its own, and they take turns.
"""

import sys
from collections.abc import Callable

import numpy as np
from turns import compare_with_torch, training_step

ROWS, SIZE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 32, 96, 16, 192, 12, 3, 1000
GOALS = {"eager": 1.6, "compiled": 1.0, "products": 0.89}
TOKENS = (SIZE // PATCH) ** 2 + 1


def vit_experiment():
    """The step that `fit` would run, without its data."""
    from jaxformer.config import Experiment
    from jaxformer.data.fields.image import ImageField
    from jaxformer.data.pipeline.loader import Data
    from jaxformer.data.sources.pictures import ImageFolders
    from jaxformer.data.tasks.images import LabelledImages
    from jaxformer.layers.norms import LayerNorm
    from jaxformer.layers.transformer import Transformer
    from jaxformer.models.vit import Vit
    from jaxformer.objectives.image_classification import ImageClassification
    from jaxformer.training.optimizers import AdamW

    fields = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32", "norm": LayerNorm(1e-12)}
    labels = tuple(map(str, range(CLASSES)))
    return Experiment(
        model=Vit(Transformer(WIDTH, DEPTH, HEADS, **fields), labels, image=SIZE, patch=PATCH),
        objective=ImageClassification(),
        data=Data(ImageFolders("not read"), LabelledImages(ImageField(SIZE), labels=labels), ROWS),
        tokenizer=None,
        optimizer=AdamW(weight_decay=0.01, clip=1.0),
        steps=1_000_000,
    )


def jaxformer_step() -> Callable[[], None]:
    """Our training step, on random images."""
    return training_step(vit_experiment(), random_batch())


def torch_step(compiled: bool) -> Callable[[], None]:
    """transformers' ViTForImageClassification with the same data and the same optimizer."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": 4 * WIDTH, "image_size": SIZE, "patch_size": PATCH, "num_labels": CLASSES}
    model = ViTForImageClassification(ViTConfig(**sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batch = random_batch()
    images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(batch["labels"][:, 0]).long()
    forward = torch.compile(model) if compiled else model

    def step():
        loss = torch.nn.functional.cross_entropy(forward(images).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batch() -> dict[str, np.ndarray]:
    """The images that both sides train on."""
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8),
        "labels": np.stack([rng.integers(0, CLASSES, ROWS), np.zeros(ROWS, int)], 1).astype(np.int32),
        "weights": np.tile(np.array([1, 0], np.float32), (ROWS, 1)),
    }


def step_flops() -> float:
    """Floating-point operations of our step's matrix products: forward once, backward twice.

    The images have no gradient, so that the map of their patches is computed twice only.
    """
    from jaxformer.models.flops import linear_flops

    patches = linear_flops(TOKENS - 1, PATCH * PATCH * 3, WIDTH)
    return 3.0 * vit_experiment().model.flops({"b": ROWS}) - ROWS * patches


if __name__ == "__main__":
    sides = jaxformer_step, torch_step
    sys.exit(compare_with_torch("vit_step", __doc__, *sides, GOALS, ROWS * TOKENS, step_flops(), turns=15))
