"""GPT-2's smallest model (Radford et al. 2019) with the training of GPT-3's (Brown et al. 2020), on C4.

    python train.py configs/gpt2_small.py --workdir runs/gpt2_small

Brown et al. train this size for 300 billion tokens, half a million a step, at 6e-4 falling to a tenth.
It fits 16 chips of a TPU v5e (`jaxformer plan gpt2_small --topology v5e:4x4`): 8.5 of 16 GiB a device. Not run to its
end yet: no accelerator was at hand.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Gpt(
        jf.layers.Transformer(
            width=768,
            depth=12,
            heads=12,
            mlp=jf.layers.Mlp(activation="gelu_tanh"),
            norm=jf.layers.LayerNorm(1e-5),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            remat="dots",
        ),
        vocab=50_304,  # A multiple of 128: the tokenizer's 50,257 would leave the last tiles of the head half empty.
        max_length=1024,
    ),
    objective=jf.objectives.CausalLM(),
    data=jf.data.Data(
        train=jf.data.Tfds("c4/en", split="train"),
        validation=jf.data.Tfds("c4/en", split="validation"),
        task=jf.data.NextToken(length=1024),
        batch=512,
        pack=True,
        workers=8,
    ),
    tokenizer=jf.tokenizers.ByteLevelBpe(vocab=50_257),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=6e-4, warmup=715, decay="cosine", end=0.1),
        weight_decay=0.1,
        b2=0.95,
        eps=1e-8,
    ),
    steps=572_000,
    evaluation=jf.Evaluation(every=5_000, batches=50),
    checkpoint=jf.Checkpoint(every=2_500, best="loss"),
    log=jf.Log(every=100),
)
