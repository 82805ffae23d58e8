"""Parts of speech in the Brown corpus, from nothing, on two CPU cores.

    python train.py configs/tagging.py --workdir runs/tagging
    jaxformer predict runs/tagging "The old man the boat."

Measured: 97.0% of the words of held-out sentences have the right one of 12 tags after 1,200 steps (94.4% after 400),
ten minutes on two cores that other programs used too. With norms before the layers, which no BERT of transformers has,
it is 97.0% too.
"""

import jaxformer as jf

TAGS = ("ADJ", "ADP", "ADV", "CONJ", "DET", "NOUN", "NUM", "PRON", "PRT", "VERB", "X", ".")

STACK = jf.layers.Transformer(
    width=128,
    depth=3,
    heads=4,
    norm=jf.layers.LayerNorm(1e-12),
    norm_position="after",
    dropout=0.1,
    attention_dropout=0.0,
)

experiment = jf.Experiment(
    model=jf.models.Classifier(
        jf.models.Bert(STACK, vocab=8192, max_length=128, prediction_heads=()),
        labels=TAGS,
        pooling="none",
    ),
    objective=jf.objectives.Tagging(),
    data=jf.data.Data(
        train=jf.data.Tfds("brown", split="train"),
        validation=jf.data.Tfds("brown", split="validation"),
        task=jf.data.TagTokens(TAGS, length=128),
        batch=16,
        pack=True,
    ),
    tokenizer=jf.tokenizers.WordPiece(vocab=8192, lowercase=False),
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=2e-3, warmup=100, decay="cosine")),
    steps=1200,
    evaluation=jf.Evaluation(every=400),
    checkpoint=jf.Checkpoint(every=400),
    log=jf.Log(every=50),
)
