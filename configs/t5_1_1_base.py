"""T5 v1.1 base on C4 (Raffel et al. 2020 with the gated MLP of Shazeer 2020).

    python train.py configs/t5_1_1_base.py --workdir runs/t5_1_1_base

A million steps of 2,048 rows, as the largest runs of the paper (§3.7), without dropout.
Not run to its end yet: no accelerator was at hand.

`jaxformer plan` finds that it fits 16 chips of a TPU v5e (v5e:4x4) in four micro-batches: 7.5 of 16 GiB a device.
"""

import jaxformer as jf

SHAPE = {
    "width": 768,
    "depth": 12,
    "heads": 12,
    "mlp": 2048,
    "gated": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "remat": "dots",
}

experiment = jf.Experiment(
    model=jf.models.T5(
        jf.models.t5_stack(**SHAPE), jf.models.t5_stack(**SHAPE, bidirectional=False), tie_embeddings=False
    ),
    objective=jf.objectives.Seq2SeqLM(z_loss=1e-4),
    data=jf.data.Data(
        train=jf.data.Tfds("c4/en", split="train"),
        validation=jf.data.Tfds("c4/en", split="validation"),
        task=jf.data.SpanCorruption(input_length=512),
        batch=2048,
        pack=True,
        workers=8,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=32_100, sentinels=100),
    # 1 / sqrt(max(step, 10,000)), times the size of each parameter.
    optimizer=jf.optimizers.Adafactor(
        schedule=jf.optimizers.Schedule(0.01, 10_000, "inverse_sqrt"), weight_decay=0.0, clip=None, accumulate=4
    ),
    steps=1_000_000,
    evaluation=jf.Evaluation(every=5_000, batches=50),
    checkpoint=jf.Checkpoint(every=2_500, best="loss"),
    log=jf.Log(every=100),
)
