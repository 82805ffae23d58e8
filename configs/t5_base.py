"""T5 base on C4, v1.0 (Raffel et al. 2020).

    python train.py configs/t5_base.py --workdir runs/t5_base

The paper's baseline: 524,288 steps of 128 rows, 34 billion tokens. It fits 8 chips of a TPU v5e (v5e:2x4): 3.9 of
16 GiB a device. Not run to its end yet: no accelerator was at hand.
"""

import jaxformer as jf

SHAPE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "dtype": "bfloat16", "remat": "dots"}

experiment = jf.Experiment(
    model=jf.models.T5(jf.models.t5_stack(**SHAPE), jf.models.t5_stack(**SHAPE, bidirectional=False)),
    objective=jf.objectives.Seq2SeqLM(z_loss=1e-4),
    data=jf.data.Data(
        train=jf.data.Tfds("c4/en", split="train"),
        validation=jf.data.Tfds("c4/en", split="validation"),
        task=jf.data.SpanCorruption(input_length=512),
        batch=128,
        pack=True,
        workers=8,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=32_100, sentinels=100),
    # 1 / sqrt(max(step, 10,000)), times the size of each parameter.
    optimizer=jf.optimizers.Adafactor(
        schedule=jf.optimizers.Schedule(0.01, 10_000, "inverse_sqrt"), weight_decay=0.0, clip=None
    ),
    steps=524_288,
    evaluation=jf.Evaluation(every=5_000, batches=50),
    checkpoint=jf.Checkpoint(every=2_500, best="loss"),
    log=jf.Log(every=100),
)
