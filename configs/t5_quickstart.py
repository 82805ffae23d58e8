"""A small T5 v1.1 on hidden spans, translation and summaries in one stream, from nothing, on two CPU cores.

python train.py configs/t5_quickstart.py --workdir runs/t5
jaxformer predict runs/t5 "translate English to German: And God said, Let there be light."
jaxformer predict runs/t5 "In the beginning <extra_id_0> created the heavens and <extra_id_1>."

T5's multi-task pretraining (Raffel et al. 2020, §3.5.2): spans of the World English Bible are hidden, its verses are
translated, and descriptions of Debian packages summarized, where there is apt to fetch them. An evaluation writes too.
"""

import shutil

import jaxformer as jf

SHAPE = {"width": 192, "depth": 3, "heads": 6, "mlp": 512, "head_dim": 32, "gated": True}
SHAPE |= {"dropout": 0.0, "attention_dropout": 0.0}
TRANSLATE, SUMMARIZE = "translate English to German: ", "summarize: "


def mixture(split: str) -> jf.data.Mixture:
    """Of twelve documents visited, one is a chapter, which gives many examples; the others are pairs."""
    sources = [
        jf.data.Tfds("bible/web", split),
        jf.data.Columns(jf.data.Tfds("bible/en-de", split), "en", "de", TRANSLATE),
    ]
    if shutil.which("apt-get"):
        sources.append(
            jf.data.Columns(jf.data.Tfds("debian_descriptions/summaries", split), "description", "summary", SUMMARIZE)
        )
    return jf.data.Mixture(tuple(sources), (1.0, 8.0, 3.0)[: len(sources)])


experiment = jf.Experiment(
    model=jf.models.T5(
        jf.models.t5_stack(**SHAPE), jf.models.t5_stack(**SHAPE, bidirectional=False), vocab=4096, tie_embeddings=False
    ),
    objective=jf.objectives.Seq2SeqLM(
        decoding=jf.Decoding(max_new_tokens=96, num_beams=4),
        scored=100,
        scores=(jf.metrics.Scores(TRANSLATE), jf.metrics.Scores(SUMMARIZE, ("rouge",)))[
            : len(mixture("train").sources) - 1
        ],
    ),
    data=jf.data.Data(
        mixture("train"),
        jf.data.MultiTask(jf.data.SpanCorruption(64), jf.data.TextToText(128, 96)),
        16,
        mixture("validation"),
        pack=True,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=4096, sample=20_000, sentinels=100),
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1200,
    evaluation=jf.Evaluation(every=600),
    checkpoint=jf.Checkpoint(every=600),
    log=jf.Log(every=50),
)
