"""BERT large as in the paper (Devlin et al. 2019, §3), in bfloat16, its parameters split over 8 devices.

    python train.py configs/bert_large.py --workdir runs/bert_large
    python train.py configs/bert_large.py --mesh.fsdp 4 --mesh.tensor 2 --workdir runs/bert_large

Written out, not derived from bert_base.py, so that each config reads by itself; its two phases apply here too. With
`--mesh.data 2` it fits 16 chips of a TPU v5e (v5e:4x4): 5.0 of 16 GiB a device. Not run to its end yet: no accelerator
was at hand. The paper's result is GLUE 82.1 after fine-tuning.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Bert(
        jf.layers.Transformer(
            width=1024,
            depth=24,
            heads=16,
            norm=jf.layers.LayerNorm(1e-12),
            norm_position="after",
            dtype="bfloat16",
            remat="dots",
        ),
        vocab=30_522,
    ),
    objective=jf.objectives.MaskedLM(),
    data=jf.data.Data(
        train=jf.data.Tfds("wikipedia/20230601.en", split="train[1%:]"),
        validation=jf.data.Tfds("wikipedia/20230601.en", split="train[:1%]"),
        task=jf.data.MaskedSentencePairs(length=512, predictions=76),
        batch=256,
        workers=8,
    ),
    tokenizer=jf.tokenizers.WordPiece(vocab=30_522),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-4, warmup=10_000, decay="linear"), weight_decay=0.01
    ),
    steps=1_000_000,
    mesh=jf.Mesh(fsdp=8),
    evaluation=jf.Evaluation(every=10_000, batches=100),
    checkpoint=jf.Checkpoint(every=5_000, best="loss"),
    log=jf.Log(every=100),
)
