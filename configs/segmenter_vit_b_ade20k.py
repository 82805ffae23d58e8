"""Seg-B-Mask/16, a ViT-B with a mask transformer (Strudel et al. 2021), on ADE20K.

    python train.py configs/segmenter_vit_b_ade20k.py --mesh.data -1 --workdir runs/segmenter_b

Expects the folders of ADEChallengeData2016. Strudel et al. start from a ViT that is trained on ImageNet-21k and report
a mean IoU of 48.7 (single scale). Not run yet: no accelerator was at hand.
"""

import jaxformer as jf

LABELS = tuple(map(str, range(1, 151)))  # The numbers in the masks; 0 means that a pixel has no label.
HOME = "ADEChallengeData2016"
STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.Segmenter(
        jf.layers.Transformer(width=768, depth=12, heads=12, residual=jf.layers.ResidualBranch(drop_path=0.1), **STACK),
        LABELS,
        jf.layers.Transformer(width=768, depth=2, heads=12, **STACK),
    ),
    objective=jf.objectives.SemanticSegmentation(),
    data=jf.data.Data(
        train=jf.data.MaskFolders(f"{HOME}/images/training", f"{HOME}/annotations/training"),
        validation=jf.data.MaskFolders(f"{HOME}/images/validation", f"{HOME}/annotations/validation"),
        task=jf.data.SegmentedImages(
            jf.data.ImageField(512, augmentation=jf.data.Augmentation(scale=(0.25, 1.0)), resample="bilinear"),
            labels=LABELS,
            zero_is_unlabelled=True,
        ),
        batch=8,
        workers=8,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=5e-5, warmup=1500, decay="linear"), weight_decay=0.01
    ),
    steps=160_000,
    evaluation=jf.Evaluation(every=16_000),
    checkpoint=jf.Checkpoint(every=4000, best="mean_iou"),
    log=jf.Log(every=100),
)
