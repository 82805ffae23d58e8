"""SegFormer-B0 (Xie et al. 2021) on ADE20K.

    python train.py configs/segformer_b0_ade20k.py --mesh.data -1 --workdir runs/segformer_b0

Expects the folders of ADEChallengeData2016. Xie et al. start from an encoder that is trained on ImageNet and report a
mean IoU of 37.4. Not run yet: no accelerator was at hand.
"""

import jaxformer as jf

LABELS = tuple(map(str, range(1, 151)))  # The numbers in the masks; 0 means that a pixel has no label.
HOME = "ADEChallengeData2016"

experiment = jf.Experiment(
    model=jf.models.SegFormer(labels=LABELS),
    objective=jf.objectives.SemanticSegmentation(),
    data=jf.data.Data(
        train=jf.data.MaskFolders(f"{HOME}/images/training", f"{HOME}/annotations/training"),
        validation=jf.data.MaskFolders(f"{HOME}/images/validation", f"{HOME}/annotations/validation"),
        task=jf.data.SegmentedImages(
            jf.data.ImageField(512, augmentation=jf.data.Augmentation(scale=(0.25, 1.0)), resample="bilinear"),
            labels=LABELS,
            zero_is_unlabelled=True,
        ),
        batch=16,
        workers=8,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=6e-5, warmup=1500, decay="linear"), weight_decay=0.01
    ),
    steps=160_000,
    evaluation=jf.Evaluation(every=16_000),
    checkpoint=jf.Checkpoint(every=4000, best="mean_iou"),
    log=jf.Log(every=100),
)
