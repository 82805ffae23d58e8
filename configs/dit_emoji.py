"""A small DiT (Peebles & Xie 2023) that draws emoji from their names, trained by flow matching from nothing, on two CPU
cores.

    python train.py configs/dit_emoji.py --workdir runs/dit_emoji
    jaxformer predict runs/dit_emoji "red heart" "cat face" "flag" --out page.html

    python benchmarks/named_images.py runs/dit_emoji runs/clip

Measured: the 3,000 steps are 28 epochs, and took 41 minutes on two cores that many other programs used too (20 to 74
images a second). The loss on held-out emoji is 0.382. That is not enough: the images show faces, flags and buttons, but
hardly what sort. Of images for 50 held-out names, the CLIP of `clip_emoji` finds the right name among its first 5 for
16%, of the held-out emoji themselves for 36%, and by chance for 10%.
"""

import jaxformer as jf

TEXT = {"norm": jf.layers.LayerNorm(1e-6), "norm_position": "before", "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.Dit(
        jf.models.dit_stack(width=144, depth=5, heads=4),
        text=jf.models.Bert(
            jf.layers.Transformer(width=128, depth=2, heads=4, dropout=0.1, **TEXT),
            vocab=2048,
            max_length=16,
            token_types=0,
            prediction_heads=(),
        ),
        image=32,
        patch=4,
    ),
    objective=jf.objectives.FlowMatching(predicts="image", sampling=jf.Sampling(steps=20, guidance=3.0)),
    data=jf.data.Data(
        train=jf.data.Tfds("emoji/plain", split="train"),
        validation=jf.data.Tfds("emoji/plain", split="validation"),
        task=jf.data.ImagesFromText(
            image=jf.data.ImageField(size=32),
            text=jf.data.TextField(column="name", length=16),
        ),
        batch=32,
    ),
    tokenizer=jf.tokenizers.WordPiece(vocab=2048),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=100, decay="cosine"), weight_decay=0.01, ema=0.999
    ),
    steps=3000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000),
    log=jf.Log(every=50),
)
