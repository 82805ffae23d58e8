"""BERT base as in the paper (Devlin et al. 2019, appendix A.2), in bfloat16, on any TFDS text.

    python train.py configs/bert_base.py --workdir runs/bert_base
    python train.py configs/bert_base.py --data.train.name lm1b --data.validation.name lm1b --workdir runs/lm1b

The paper trains 900,000 steps on rows of 128 tokens, then 100,000 on rows of 512:

    python train.py configs/bert_base.py --workdir runs/short --steps 900000 \
        --data.task.length 128 --data.task.predictions 20
    python train.py configs/bert_base.py --workdir runs/base --steps 100000 --init runs/short

It fits 16 chips of a TPU v5e (`jaxformer plan bert_base --topology v5e:4x4`): 3.7 of 16 GiB a device.

Not run to its end yet: no accelerator was at hand. The paper's result is GLUE 79.6 after fine-tuning.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Bert(
        jf.layers.Transformer(
            width=768,
            depth=12,
            heads=12,
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
    evaluation=jf.Evaluation(every=10_000, batches=100),
    checkpoint=jf.Checkpoint(every=5_000, best="loss"),
    log=jf.Log(every=100),
)
