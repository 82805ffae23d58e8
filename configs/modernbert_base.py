"""ModernBERT base as in the paper (Warner et al. 2024), in bfloat16. Not run yet: it needs accelerators.

    python train.py configs/modernbert_base.py --workdir runs/modernbert

The paper trains on 1.7 trillion tokens in rows of 1,024, then on 300 billion in rows of 8,192: a second run with
`--init` of the first, `--data.task.length 8192 --data.task.predictions 2560 --data.batch 72` and a peak rate of 3e-4.
Five things differ: global blocks have a rotary base of 160,000 from the start; the learning rate stays at the peak;
AdamW with a limited gradient takes the place of StableAdamW; there is no dropout; the tokenizer is trained here.
"""

import jaxformer as jf

LOCAL = jf.layers.Variant(
    attention=jf.layers.Attention(bias=False, window=65), position_embedding=jf.layers.Rotary(10_000.0)
)

experiment = jf.Experiment(
    model=jf.models.Bert(
        jf.layers.Transformer(
            width=768,
            depth=22,
            heads=12,
            attention=jf.layers.Attention(bias=False),
            mlp=jf.layers.GatedMlp(1152, "gelu"),
            norm=jf.layers.LayerNorm(1e-5, bias=False),
            first_norm=False,
            position_embedding=jf.layers.Rotary(160_000.0),
            period=(jf.layers.Variant(), LOCAL, LOCAL),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            remat="dots",
        ),
        vocab=50_368,
        max_length=8192,
        token_types=0,
        prediction_heads=("masked_lm",),
        head_bias=False,
    ),
    objective=jf.objectives.MaskedLM(next_sentence=0.0),
    data=jf.data.Data(
        train=jf.data.Tfds("wikipedia/20230601.en", split="train[1%:]"),
        validation=jf.data.Tfds("wikipedia/20230601.en", split="train[:1%]"),
        task=jf.data.MaskedSentencePairs(length=1024, predictions=320, mask_rate=0.3, next_sentence=False),
        batch=4608,
        pack=True,
        workers=8,
    ),
    tokenizer=jf.tokenizers.ByteLevelBpe(vocab=50_368),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=8e-4, warmup=640, decay="constant"),
        b2=0.98,
        eps=1e-6,
        weight_decay=1e-5,
    ),
    steps=360_000,
    evaluation=jf.Evaluation(every=10_000, batches=20),
    checkpoint=jf.Checkpoint(every=1_000, best="loss"),
    log=jf.Log(every=100),
)
