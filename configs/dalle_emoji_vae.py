"""A discrete autoencoder of emoji for `dalle_emoji` (Ramesh et al. 2021), trained from nothing on two CPU cores.

    python train.py configs/dalle_emoji_vae.py --workdir runs/dalle_emoji_vae
    python train.py configs/dalle_emoji.py --init runs/dalle_emoji_vae --workdir runs/dalle_emoji

Not run to its end yet.
"""

import jaxformer as jf

STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.DiscreteVae(
        encoder=jf.layers.Transformer(width=128, depth=2, heads=4, **STACK),
        decoder=jf.layers.Transformer(width=128, depth=3, heads=4, **STACK),
        image=32,
        patch=4,
        codes=512,
        code_width=16,
    ),
    objective=jf.objectives.DiscreteAutoencoding(),
    data=jf.data.Data(
        train=jf.data.Tfds("emoji/all", split="train"),
        validation=jf.data.Tfds("emoji/google", split="validation"),
        task=jf.data.ImageTask(jf.data.ImageField(size=32)),
        batch=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=100, decay="cosine"), weight_decay=0.01
    ),
    steps=2500,
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=500),
    log=jf.Log(every=50),
)
