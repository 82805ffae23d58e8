"""A small DiT (Peebles & Xie 2023) that draws emoji from their names, trained by flow matching from nothing, on two CPU
cores.

    python train.py configs/dit_emoji.py --workdir runs/dit_emoji
    jaxformer predict runs/dit_emoji "red heart" "cat face" "flag" --out page.html

Not run to its end yet.
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
    objective=jf.objectives.FlowMatching(times="uniform", sampling=jf.Sampling(steps=20, guidance=3.0)),
    data=jf.data.Data(
        train=jf.data.Tfds("emoji/all", split="train"),
        validation=jf.data.Tfds("emoji/google", split="validation"),
        task=jf.data.ImagesFromText(
            image=jf.data.ImageField(size=32),
            text=jf.data.TextField(column="name", length=16),
        ),
        batch=64,
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
