"""A small ViViT with a factorised encoder (Arnab et al. 2021) on 4,000 clips of moving emoji, from nothing, on two CPU
cores: which way they move, whether they grow and how they turn.

    python train.py configs/vivit_moving_scenes.py --workdir runs/vivit
    jaxformer predict runs/vivit CLIP.webp

The held-out clips contain other emoji. No result of a run to its end has been recorded yet.
"""

import itertools

import jaxformer as jf

GROWTHS, ROTATIONS = ("grows", "shrinks", "same size"), ("clockwise", "counterclockwise", "no turn")
LABELS = tuple(map(", ".join, itertools.product(("left", "right", "up", "down"), GROWTHS, ROTATIONS)))
STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.VideoVit(
        jf.layers.Transformer(width=96, depth=3, heads=3, **STACK),
        LABELS,
        image=64,
        frames=8,
        patch=8,
        tubelet=2,
        temporal=jf.layers.Transformer(width=96, depth=2, heads=3, **STACK),
    ),
    objective=jf.objectives.VideoClassification(label_smoothing=0.1),
    data=jf.data.Data(
        train=jf.data.Tfds("moving_scenes", split="train"),
        validation=jf.data.Tfds("moving_scenes", split="validation"),
        task=jf.data.LabelledClips(jf.data.ClipField(64, frames=8, sampling="uniform"), label="motion", labels=LABELS),
        batch=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=100, decay="cosine"), weight_decay=0.05
    ),
    steps=6000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000),
    log=jf.Log(every=100),
)
