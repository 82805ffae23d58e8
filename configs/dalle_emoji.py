"""A small DALL·E (Ramesh et al. 2021) that draws emoji from their names, on two CPU cores.

    python train.py configs/dalle_emoji_vae.py --workdir runs/dalle_emoji_vae
    python train.py configs/dalle_emoji.py --init runs/dalle_emoji_vae --workdir runs/dalle_emoji
    jaxformer predict runs/dalle_emoji "red heart" "cat face" --out page.html --rank-by runs/clip --keep 4

`--rank-by` orders the images by how well they fit the text, in the judgement of a CLIP such as `clip_emoji`; without
it, all images are shown. Not run to its end yet.
"""

import jaxformer as jf

STACK = {"norm": jf.layers.LayerNorm(1e-6), "attention_dropout": 0.0}

experiment = jf.Experiment(
    model=jf.models.Dalle(
        vae=jf.models.DiscreteVae(
            encoder=jf.layers.Transformer(width=128, depth=2, heads=4, dropout=0.0, **STACK),
            decoder=jf.layers.Transformer(width=128, depth=3, heads=4, dropout=0.0, **STACK),
            image=32,
            patch=4,
            codes=512,
            code_width=16,
        ),
        transformer=jf.layers.Transformer(width=160, depth=4, heads=5, dropout=0.2, **STACK),
        vocab=2048,
        max_length=16,
    ),
    objective=jf.objectives.ImageTokens(pictures=8),
    data=jf.data.Data(
        train=jf.data.Tfds("emoji/plain", split="train"),
        validation=jf.data.Tfds("emoji/plain", split="validation"),
        task=jf.data.ImagesFromText(jf.data.ImageField(size=32), jf.data.TextField(column="name", length=16)),
        batch=32,
    ),
    tokenizer=jf.tokenizers.WordPiece(vocab=2048),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-3, warmup=100, decay="cosine"), weight_decay=0.05, freeze=("^vae/",)
    ),
    steps=4000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000, best="image_loss"),
    log=jf.Log(every=50),
)
