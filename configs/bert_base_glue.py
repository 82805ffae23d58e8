"""BERT base on a task of GLUE, as in the paper (Devlin et al. 2019, §4.1): MRPC, batches of 32, 3 epochs, in bfloat16.

    python train.py configs/bert_base_glue.py --workdir runs/mrpc
    python train.py configs/bert_base_glue.py --init runs/bert_base --workdir runs/mrpc \
        --optimizer.schedule.peak 3e-5

The other tasks have other columns and labels: CoLA is `glue/cola`, text="sentence" without a pair; STS-B has the kind
"regression", one label and `Regression()`. The paper chose the rate among 5e-5, 4e-5, 3e-5 and 2e-5 on held-out pairs.

Not run to its end yet: the data set and the weights were not at hand. The paper's F1 is 88.9 on the test set.
"""

import jaxformer as jf

LABELS = ("not_equivalent", "equivalent")
WEIGHTS = "google-bert/bert-base-uncased"

experiment = jf.Experiment(
    model=jf.models.Classifier(
        jf.models.Bert(
            jf.layers.Transformer(norm=jf.layers.LayerNorm(1e-12), norm_position="after", dtype="bfloat16"),
            prediction_heads=("pooler",),
        ),
        LABELS,
    ),
    objective=jf.objectives.Classification(),
    data=jf.data.Data(
        train=jf.data.Tfds("glue/mrpc", split="train"),
        validation=jf.data.Tfds("glue/mrpc", split="validation"),
        task=jf.data.Classify(text="sentence1", pair="sentence2", labels=LABELS, length=128),
        batch=32,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=2e-5, warmup=34)),
    steps=344,
    evaluation=jf.Evaluation(every=115),
    checkpoint=jf.Checkpoint(every=115, best="f1/equivalent"),
    log=jf.Log(every=20),
)
