"""The discrete autoencoder of `dalle_cc3m`: 8,192 codes, and 32 × 32 codes per image (Ramesh et al. 2021, §2.1).

    python train.py configs/dalle_cc3m_vae.py --mesh.data -1 --workdir runs/dalle_cc3m_vae

The images are those of Conceptual Captions (Sharma et al. 2018), listed in JSON lines with their captions:
{"image": "cc3m/images/1.jpg", "text": "a caption"}. The paper uses convolutions and the Gumbel softmax; here, encoder
and decoder are the Transformers of ViT-VQGAN-Small (Yu et al. 2022). Not run to its end yet: no accelerator was at
hand.
"""

import jaxformer as jf

STACK = {"norm": jf.layers.LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "bfloat16"}

experiment = jf.Experiment(
    model=jf.models.DiscreteVae(
        encoder=jf.layers.Transformer(width=512, depth=8, heads=8, **STACK),
        decoder=jf.layers.Transformer(width=512, depth=8, heads=8, **STACK),
        image=256,
        patch=8,
        codes=8192,
        code_width=32,
    ),
    objective=jf.objectives.DiscreteAutoencoding(),
    data=jf.data.Data(
        train=jf.data.JsonLines(("cc3m/train.jsonl",)),
        validation=jf.data.JsonLines(("cc3m/validation.jsonl",)),
        task=jf.data.ImageTask(jf.data.ImageField(256)),
        batch=256,
        workers=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-4, warmup=10_000, decay="cosine"), b2=0.99, weight_decay=1e-4, ema=0.999
    ),
    steps=500_000,
    evaluation=jf.Evaluation(every=20_000, batches=40),
    checkpoint=jf.Checkpoint(every=10_000),
    log=jf.Log(every=100),
)
