"""A small DETR on 8,000 scenes of emoji, from nothing, on two CPU cores.

    pip install 'jaxformer[coco]'
    python train.py configs/detr_scenes.py --workdir runs/scenes
    jaxformer predict runs/scenes PICTURE.png --out page.html

Not run to its end yet.
"""

import jaxformer as jf

LABELS = ("face", "hand", "person", "animal", "vehicle", "flag")
STACK = {"norm": jf.layers.LayerNorm(1e-5), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.Detr(
        backbone=jf.layers.PatchBackbone(width=128, patch=16, stem=(32, 64, 128)),
        encoder=jf.layers.Transformer(width=128, depth=3, heads=4, mlp=jf.layers.Mlp(256), **STACK),
        decoder=jf.layers.Transformer(
            width=128, depth=3, heads=4, mlp=jf.layers.Mlp(256), norm_position="after", **STACK
        ),
        labels=LABELS,
        queries=12,
        groups=4,
        reference_points=True,
        image=96,
    ),
    objective=jf.objectives.ObjectDetection(),
    data=jf.data.Data(
        train=jf.data.Tfds("scenes", split="train"),
        validation=jf.data.Tfds("scenes", split="validation"),
        task=jf.data.LabelledBoxes(
            image=jf.data.ImageField(
                size=96, fit="pad", augmentation=jf.data.ScaleJitter(shortest=(60, 96), crop=0.3, share=0.7)
            ),
            labels=LABELS,
            max_boxes=4,
            box_format="fractions",
        ),
        batch=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=8e-4, warmup=300, decay="cosine"), weight_decay=0.01, clip=0.5
    ),
    steps=8000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000, best="ap_50"),
    log=jf.Log(every=100),
)
