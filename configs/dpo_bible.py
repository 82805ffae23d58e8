"""Direct preference optimization (DPO, Rafailov et al. 2023): the model of `dialogue_bible` learns to prefer the
language of the World English Bible to that of the King James Version, on two CPU cores.

    python train.py configs/dialogue_bible.py --workdir runs/dialogue
    python train.py configs/dpo_bible.py --workdir runs/dpo
    jaxformer chat runs/dpo
"""

import jaxformer as jf

START = "runs/dialogue"
TEMPLATE = jf.data.DialogueTemplate()

experiment = jf.Experiment(
    model=jf.models.Gpt(
        jf.layers.Transformer(
            width=128,
            depth=4,
            heads=4,
            attention=jf.layers.Attention(bias=False),
            mlp=jf.layers.GatedMlp(),
            norm=jf.layers.RMSNorm(),
            position_embedding=jf.layers.Rotary(),
            dropout=0.0,
            attention_dropout=0.0,
        ),
        vocab=4096,
        max_length=512,
    ),
    objective=jf.objectives.Dpo(
        beta=0.1, template=TEMPLATE, decoding=jf.Decoding(max_new_tokens=64, temperature=0.7, top_p=0.9)
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("bible/preferences", split="train"),
        validation=jf.data.Tfds("bible/preferences", split="validation"),
        task=jf.data.Preferences(length=128, template=TEMPLATE),
        batch=16,
    ),
    tokenizer=jf.tokenizers.RunTokenizer(START),
    init=START,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-4, warmup=20, decay="linear")),
    steps=200,
    evaluation=jf.Evaluation(every=100, batches=16),
    checkpoint=jf.Checkpoint(every=100),
    log=jf.Log(every=20),
)
