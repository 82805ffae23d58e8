"""The encoder of configs/video_mae_moving_scenes.py becomes a classifier of motions, such as "left, grows, clockwise".

    python train.py configs/video_mae_moving_scenes.py --workdir runs/scenes_mae
    python train.py configs/video_mae_moving_scenes_finetune.py --init runs/scenes_mae --workdir runs/scenes
    jaxformer predict runs/scenes CLIP.webp

The held-out clips contain other emoji. No result of a run to its end has been recorded yet.
"""

import itertools

import jaxformer as jf

GROWTHS, ROTATIONS = ("grows", "shrinks", "same size"), ("clockwise", "counterclockwise", "no turn")
LABELS = tuple(map(", ".join, itertools.product(("left", "right", "up", "down"), GROWTHS, ROTATIONS)))

experiment = jf.Experiment(
    model=jf.models.VideoVit(
        jf.models.video_mae_encoder(width=96, depth=4, heads=3),
        LABELS,
        image=64,
        frames=8,
        patch=8,
        tubelet=2,
        position_embedding="sinusoidal",
        class_token=False,
        pooling="mean",
        pooled_norm=jf.layers.LayerNorm(1e-5),
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
    steps=2000,
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=1000),
    log=jf.Log(every=100),
)
