"""BERT base on a task of GLUE, as in the paper (Devlin et al. 2019, §4.1): MRPC, batches of 32, 3 epochs, in bfloat16.

    python train.py configs/bert_base_glue.py --workdir runs/mrpc
    python train.py configs/bert_base_glue.py --init runs/bert_base --workdir runs/mrpc \
        --optimizer.schedule.peak 3e-5

The other tasks have other columns and labels: CoLA is `glue/cola`, text="sentence" without a pair; STS-B has the kind
"number", one label and `Regression()`. The paper chose the rate among 5e-5, 4e-5, 3e-5 and 2e-5 on held-out pairs.

Not run to its end yet: the data set and the weights were not at hand. The paper's F1 is 88.9 on the test set.
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

LABELS = ("not_equivalent", "equivalent")
WEIGHTS = "google-bert/bert-base-uncased"

experiment = Experiment(
    model=Classifier(
        Bert(
            Transformer(norm=LayerNorm(1e-12), norm_position="after", dtype="bfloat16"),
            heads=("pooler",),
        ),
        LABELS,
    ),
    objective=Classification(),
    data=Data(
        train=Tfds("glue/mrpc", split="train"),
        validation=Tfds("glue/mrpc", split="validation"),
        task=Classify(text="sentence1", pair="sentence2", labels=LABELS, length=128),
        batch=32,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=AdamW(schedule=Schedule(peak=2e-5, warmup=34)),
    steps=344,
    evaluation=Evaluation(every=115),
    checkpoint=Checkpoint(every=115, best="f1/equivalent", best_is="highest"),
    log=Log(every=20),
)
