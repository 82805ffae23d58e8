"""DALL·E with 1.2 billion parameters on Conceptual Captions (Ramesh et al. 2021, §2, preliminary experiments).

    python train.py configs/dalle_cc3m_vae.py --mesh.data -1 --workdir runs/dalle_cc3m_vae
    python train.py configs/dalle_cc3m.py --init runs/dalle_cc3m_vae --mesh.fsdp -1 --mesh.data 1 --workdir runs/dalle
    jaxformer predict runs/dalle "a tapir made of accordion" --out page.html

Texts have up to 256 of 16,384 tokens, and images 1,024 codes, as in the paper. Images are listed as `dalle_cc3m_vae`
says. All attention is full, while the paper alternates between rows, columns and neighborhoods of the image. Not run to
its end yet: no accelerator was at hand.
"""

import jaxformer as jf

VAE = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "bfloat16"}

experiment = jf.Experiment(
    model=jf.models.Dalle(
        vae=jf.models.DiscreteVae(
            encoder=jf.layers.Transformer(width=512, depth=8, heads=8, **VAE),
            decoder=jf.layers.Transformer(width=512, depth=8, heads=8, **VAE),
        ),
        transformer=jf.layers.Transformer(
            width=2048,
            depth=24,
            heads=32,
            norm=jf.layers.LayerNorm(1e-5),
            dropout=0.1,
            attention_dropout=0.0,
            dtype="bfloat16",
            remat="full",
        ),
    ),
    objective=jf.objectives.ImageTokens(pictures=32),
    data=jf.data.Data(
        train=jf.data.JsonLines(("cc3m/train.jsonl",)),
        validation=jf.data.JsonLines(("cc3m/validation.jsonl",)),
        task=jf.data.ImagesFromText(jf.data.ImageField(256), jf.data.TextField(length=256)),
        batch=512,
        workers=32,
    ),
    tokenizer=jf.tokenizers.WordPiece(vocab=16_384),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=4.5e-4, warmup=5000, decay="cosine"),
        b2=0.96,
        weight_decay=4.5e-2,
        freeze=("^vae/",),
    ),
    steps=100_000,
    evaluation=jf.Evaluation(every=5000, batches=40),
    checkpoint=jf.Checkpoint(every=5000),
    log=jf.Log(every=100),
)
