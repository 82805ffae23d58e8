"""LLaMA 7B (Touvron et al. 2023), on C4, its parameters and optimizer split over all devices.

    python train.py configs/llama_7b.py --workdir runs/llama_7b

The paper's model, optimizer and batch of four million tokens; it trains for one trillion tokens on a mixture of
which C4 is the second largest part. Not run: no accelerator was at hand.

`jaxformer plan` finds that it fits 64 chips of a TPU v5p with `--mesh.data 2 --mesh.fsdp 32`: 30.7 of 95 GiB a device.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Gpt(
        jf.layers.Transformer(
            width=4096,
            depth=32,
            heads=32,
            attention=jf.layers.Attention(bias=False),
            mlp=jf.layers.GatedMlp(11_008),
            norm=jf.layers.RMSNorm(1e-6),
            position_embedding=jf.layers.Rotary(),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            remat="full",
        ),
        vocab=32_000,
        max_length=2048,
        tie_embeddings=False,
    ),
    objective=jf.objectives.CausalLM(),
    data=jf.data.Data(
        train=jf.data.Tfds("c4/en", split="train"),
        validation=jf.data.Tfds("c4/en", split="validation"),
        task=jf.data.NextToken(length=2048),
        batch=2048,
        pack=True,
        workers=16,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=32_000, model_type="bpe"),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=3e-4, warmup=2_000, decay="cosine", end=0.1), weight_decay=0.1, b2=0.95
    ),
    steps=238_000,
    mesh=jf.Mesh(data=1, fsdp=-1),
    evaluation=jf.Evaluation(every=2_000, batches=20),
    checkpoint=jf.Checkpoint(every=1_000),
    log=jf.Log(every=20),
)
