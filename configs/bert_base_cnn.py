"""BERT base that extracts the summaries of the news of CNN and the Daily Mail (BERTSum, Liu & Lapata 2019).

    python train.py configs/bert_base_cnn.py --workdir runs/bertsum_cnn

The paper trains for 50,000 steps, with two more Transformer layers over the sentences, and reports ROUGE-1, -2 and -L
of 43.25, 20.24 and 39.63; the first three sentences have 40.42, 17.62 and 36.67. Its ROUGE-L compares sentence by
sentence, `rouge_l` whole texts. Its sentences are of CoreNLP; here lines and punctuation end them. Not run here: no
accelerator was at hand.
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
        ("in the summary",),
        pooling="none",
    ),
    objective=jf.objectives.ExtractiveSummarization(scored=500),
    data=jf.data.Data(
        train=jf.data.Tfds("cnn_dailymail", split="train"),
        validation=jf.data.Tfds("cnn_dailymail", split="validation"),
        task=jf.data.SummarySentences(512, 64, document="article", summary="highlights"),
        batch=36,
        workers=8,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=2e-5, warmup=10_000, decay="inverse_sqrt"), weight_decay=0.0
    ),
    steps=50_000,
    evaluation=jf.Evaluation(every=1_000, batches=50),
    checkpoint=jf.Checkpoint(every=1_000, best="rouge_l"),
    log=jf.Log(every=100),
)
