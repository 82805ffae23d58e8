"""A masked autoencoder (He et al. 2022) on 4,000 handwritten digits without their labels, on two CPU cores.

    python train.py configs/vit_mae_digits.py --workdir runs/digits_mae
    python train.py configs/vit_mae_digits_finetune.py --init runs/digits_mae --workdir runs/digits_finetuned

Measured on two cores that had other work to do: after 9 minutes (96 epochs, 775 images a second) the squared error of
normalised hidden patches is 0.19 on held-out digits, where grey has 1. What that is good for, the second config says.
"""

import jaxformer as jf

STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.MaskedAutoencoder(
        jf.layers.Transformer(width=96, depth=6, heads=3, **STACK),
        decoder=jf.layers.Transformer(width=64, depth=2, heads=2, **STACK),
        image=20,
        patch=4,
        channels=1,
        mask_rate=0.6,
        mean=(0.5,),
        std=(0.5,),
    ),
    objective=jf.objectives.MaskedAutoencoding(),
    data=jf.data.Data(
        train=jf.data.Tfds("handwritten_digits", split="train"),
        validation=jf.data.Tfds("handwritten_digits", split="validation"),
        task=jf.data.MaskedPatches(
            jf.data.ImageField(20, channels=1, augmentation=jf.data.Augmentation(scale=(0.6, 1.0), flip=0.0)), patch=4
        ),
        batch=128,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1.5e-3, warmup=200, decay="cosine"), weight_decay=0.05, b2=0.95
    ),
    steps=3000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000),
    log=jf.Log(every=100),
)
