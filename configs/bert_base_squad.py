"""BERT base fine-tuned on SQuAD (Devlin et al. 2019, §4.2 and §4.3).

    python train.py configs/bert_base_squad.py --workdir runs/squad

The paper fine-tunes three epochs in batches of 32 at 5e-5 and reports an exact match of 80.8 and an F1 of 88.5 on the
development set of v1.1 (base, one model). With questions without answers, v2.0, two epochs in batches of 48:

    python train.py configs/bert_base_squad.py --workdir runs/squad2 --objective.no_answer 0 --steps 5450 \
        --data.train.name squad/v2.0 --data.validation.name squad/v2.0 --data.batch 48

A step sees windows; a long context gives several. Not run to its end yet: no accelerator was at hand.
"""

import jaxformer as jf

WEIGHTS = "google-bert/bert-base-uncased"

experiment = jf.Experiment(
    model=jf.models.Classifier(
        jf.models.Bert(
            jf.layers.Transformer(
                768, 12, 12, norm=jf.layers.LayerNorm(1e-12), norm_position="after", dtype="bfloat16", remat="dots"
            ),
            prediction_heads=(),
        ),
        ("start", "end"),
        pooling="none",
    ),
    objective=jf.objectives.QuestionAnswering(),
    data=jf.data.Data(
        train=jf.data.Tfds("squad/v1.1", split="train"),
        validation=jf.data.Tfds("squad/v1.1", split="validation"),
        task=jf.data.AnswerSpans(length=384, stride=128, question_length=64),
        batch=32,
        workers=4,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=5e-5, warmup=830, decay="linear"), weight_decay=0.01
    ),
    steps=8_300,
    evaluation=jf.Evaluation(every=1_000),
    checkpoint=jf.Checkpoint(every=1_000, best="f1"),
    log=jf.Log(every=100),
)
