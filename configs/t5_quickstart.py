"""A small T5 v1.1 on hidden spans, translation and summaries in one stream, from nothing, on two CPU cores.

python train.py configs/t5_quickstart.py --workdir runs/t5
jaxformer predict runs/t5 "translate English to German: And God said, Let there be light."
jaxformer predict runs/t5 "In the beginning <extra_id_0> created the heavens and <extra_id_1>."

T5's multi-task pretraining (Raffel et al. 2020, §3.5.2): spans of the World English Bible are hidden, its verses are
translated, and descriptions of Debian packages summarized, where there is apt to fetch them. An evaluation writes too.
"""

import shutil

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Columns, Mixture, Tfds
from jaxformer.data.tasks.language import TextToText
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.span_corruption import SpanCorruption
from jaxformer.data.tokenizers import SentencePiece
from jaxformer.decoding.settings import Decoding
from jaxformer.metrics.texts import Scores
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.objectives.seq2seq import Seq2Seq
from jaxformer.training.optimizers import Muon, Schedule

SHAPE = {"width": 192, "depth": 3, "heads": 6, "mlp": 512, "head_dim": 32, "gated": True}
SHAPE |= {"dropout": 0.0, "attention_dropout": 0.0}
TRANSLATE, SUMMARIZE = "translate English to German: ", "summarize: "


def mixture(split: str) -> Mixture:
    """Of twelve documents visited, one is a chapter, which gives many examples; the others are pairs."""
    sources = [Tfds("bible/web", split), Columns(Tfds("bible/en-de", split), "en", "de", TRANSLATE)]
    if shutil.which("apt-get"):
        sources.append(Columns(Tfds("debian_descriptions/summaries", split), "description", "summary", SUMMARIZE))
    return Mixture(tuple(sources), (1.0, 8.0, 3.0)[: len(sources)])


experiment = Experiment(
    model=T5(t5_stack(**SHAPE), t5_stack(**SHAPE, bidirectional=False), vocab=4096, tied=False),
    objective=Seq2Seq(
        decoding=Decoding(max_new=96, beams=4),
        scored=100,
        scores=(Scores(TRANSLATE), Scores(SUMMARIZE, ("rouge",)))[: len(mixture("train").sources) - 1],
    ),
    data=Data(
        mixture("train"), MultiTask(SpanCorruption(64), TextToText(128, 96)), 16, mixture("validation"), pack=True
    ),
    tokenizer=SentencePiece(vocab=4096, sample=20_000, sentinels=100),
    optimizer=Muon(schedule=Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1200,
    evaluation=Evaluation(every=600),
    checkpoint=Checkpoint(every=600),
    log=Log(every=50),
)
