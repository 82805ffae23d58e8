"""T5 base fine-tuned to summarise the news of CNN and the Daily Mail (Raffel et al. 2020, §2.4 and §3.1.2).

    python train.py configs/t5_base_cnn.py --workdir runs/t5_cnn

The paper fine-tunes for 262,144 steps of 65,536 tokens at a constant rate of 0.001, keeps the best checkpoint, decodes
with four beams and a length penalty of 0.6, and reports ROUGE-1, -2 and -L of 42.05, 20.34 and 39.40 for base. The
first ten thousand steps of it are here. Not run to its end yet: no accelerator was at hand.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.language import TextToText
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer
from jaxformer.metrics.texts import Scores
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.objectives.seq2seq import Seq2Seq
from jaxformer.training.optimizers import Adafactor, Schedule

SHAPE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "dropout": 0.1, "dtype": "bfloat16", "remat": "dots"}
WEIGHTS = "google-t5/t5-base"

experiment = Experiment(
    model=T5(t5_stack(**SHAPE), t5_stack(**SHAPE, bidirectional=False)),
    objective=Seq2Seq(
        decoding=Decoding(max_new=128, beams=4, length_penalty=0.6), scored=500, scores=(Scores(by=("rouge",)),)
    ),
    data=Data(
        train=Tfds("cnn_dailymail", split="train"),
        validation=Tfds("cnn_dailymail", split="validation"),
        task=TextToText(512, 128, inputs="article", targets="highlights", prefix="summarize: "),
        batch=128,
        workers=8,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=Adafactor(schedule=Schedule(1e-3, decay="constant"), weight_decay=0.0, clip=None),
    steps=10_000,
    evaluation=Evaluation(every=1_000, batches=50),
    checkpoint=Checkpoint(every=1_000, best="rouge_l", best_is="highest"),
    log=Log(every=100),
)
