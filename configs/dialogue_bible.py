"""A small LLaMA that answers a verse of the Bible with the next verse, from nothing, on two CPU cores.

    python train.py configs/dialogue_bible.py --workdir runs/dialogue
    jaxformer chat runs/dialogue

Half of the answers are from the World English Bible, and half from the King James Version. `dpo_bible` continues
from this run.
"""

import jaxformer as jf

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
    objective=jf.objectives.CausalLM(
        template=TEMPLATE, decoding=jf.Decoding(max_new_tokens=64, temperature=0.7, top_p=0.9)
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("bible/dialogues", split="train"),
        validation=jf.data.Tfds("bible/dialogues", split="validation"),
        task=jf.data.Dialogue(length=128, template=TEMPLATE),
        batch=16,
        pack=True,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=4096),
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1000,
    evaluation=jf.Evaluation(every=500, batches=16),
    checkpoint=jf.Checkpoint(every=500),
    log=jf.Log(every=50),
)
