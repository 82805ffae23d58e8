"""A small Segmenter (Strudel et al. 2021) on 8,000 scenes of emoji, from nothing, on two CPU cores: which pixels belong
to faces, hands, persons, animals, vehicles and flags.

    python train.py configs/segmenter_scenes.py --workdir runs/segmenter
    jaxformer predict runs/segmenter PICTURE.png --out drawn.png

The held-out scenes contain other emoji. No result of a run to its end has been recorded yet.
"""

import jaxformer as jf

LABELS = ("background", "face", "hand", "person", "animal", "vehicle", "flag")
STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.Segmenter(
        jf.layers.Transformer(width=128, depth=4, heads=4, **STACK),
        LABELS,
        jf.layers.Transformer(width=128, depth=1, heads=4, **STACK),
        stem=jf.layers.PatchBackbone(width=128, patch=8, stem=(32, 64)),
        image=96,
        patch=8,
    ),
    objective=jf.objectives.SemanticSegmentation(),
    data=jf.data.Data(
        train=jf.data.Tfds("scenes", split="train"),
        validation=jf.data.Tfds("scenes", split="validation"),
        task=jf.data.SegmentedImages(
            jf.data.ImageField(96, augmentation=jf.data.Augmentation(scale=(0.5, 1.0)), resample="bilinear"),
            labels=LABELS,
            objects="objects",
        ),
        batch=16,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=200, decay="cosine"), weight_decay=0.05
    ),
    steps=3500,
    evaluation=jf.Evaluation(every=1750),
    checkpoint=jf.Checkpoint(every=500, best="mean_iou"),
    log=jf.Log(every=50),
)
