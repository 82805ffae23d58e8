"""ViT-B/16 (Dosovitskiy et al. 2021) on ImageNet alone, with the training of DeiT-B (Touvron et al. 2021).

    python train.py configs/vit_b16_imagenet.py --mesh.data -1 --workdir runs/vit_b16

TFDS prepares imagenet2012 from its archives, which one downloads by hand. Touvron et al. report 81.8% after 300 epochs.
It fits 16 chips of a TPU v5e (v5e:4x4): 11.7 of 16 GiB a device. Not run to its end yet: no accelerator was at hand.
"""

import jaxformer as jf

LABELS = tuple(map(str, range(1000)))  # TFDS numbers the classes in the order of their WordNet names.
BATCH, EPOCH = 1024, 1_281_167 // 1024

experiment = jf.Experiment(
    model=jf.models.Vit(
        jf.layers.Transformer(
            width=768,
            depth=12,
            heads=12,
            norm=jf.layers.LayerNorm(1e-6),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            residual=jf.layers.ResidualBranch(drop_path=0.1),
        ),
        LABELS,
        image=224,
        patch=16,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    objective=jf.objectives.ImageClassification(label_smoothing=0.1),
    data=jf.data.Data(
        train=jf.data.Tfds("imagenet2012", split="train"),
        validation=jf.data.Tfds("imagenet2012", split="validation"),
        task=jf.data.LabelledImages(
            jf.data.ImageField(augmentation=jf.data.Augmentation(operations=2), crop=0.875),
            labels=LABELS,
            mixup=0.8,
            cutmix=1.0,
        ),
        batch=BATCH,
        workers=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=5 * EPOCH, decay="cosine"), weight_decay=0.05
    ),
    steps=300 * EPOCH,
    evaluation=jf.Evaluation(every=5 * EPOCH),
    checkpoint=jf.Checkpoint(every=EPOCH),
    log=jf.Log(every=100),
)
