"""The section of a Debian package, one of 16, by its description: a small BERT of one's own, on two CPU cores.

    python train.py configs/bert_quickstart.py --workdir runs/descriptions --data.task.column description \\
        --data.train.name debian_descriptions/summaries --data.validation.name debian_descriptions/summaries
    python train.py configs/topics_small.py --init runs/descriptions --workdir runs/topics_small

"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.classification_tasks import Classify
from jaxformer.data.loader import Data
from jaxformer.data.sources import Tfds
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.optimizers import AdamW, Schedule
from jaxformer.runs import RunTokenizer

LABELS = (
    *("database", "editors", "electronics", "fonts", "games", "graphics", "hamradio", "localization"),
    *("mail", "math", "net", "science", "sound", "video", "web", "x11"),
)
STACK = Transformer(128, 3, 4, norm=LayerNorm(1e-12), norm_position="after", attention_dropout=0.0)

experiment = Experiment(
    model=Classifier(Bert(STACK, vocab=4096, positions=64, heads=()), LABELS, reads="mean"),
    objective=Classification(),
    data=Data(
        train=Tfds("debian_descriptions/topics", split="train"),
        validation=Tfds("debian_descriptions/topics", split="validation"),
        task=Classify(labels=LABELS, length=64),
        batch=32,
    ),
    tokenizer=RunTokenizer("runs/descriptions"),
    optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=100)),
    steps=1500,
    evaluation=Evaluation(every=250),
    checkpoint=Checkpoint(every=250, best="accuracy", best_is="highest"),
    log=Log(every=50),
)
