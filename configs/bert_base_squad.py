"""BERT base fine-tuned on SQuAD (Devlin et al. 2019, §4.2 and §4.3).

    python train.py configs/bert_base_squad.py --workdir runs/squad

The paper fine-tunes three epochs in batches of 32 at 5e-5 and reports an exact match of 80.8 and an F1 of 88.5 on the
development set of v1.1 (base, one model). With questions without answers, v2.0, two epochs in batches of 48:

    python train.py configs/bert_base_squad.py --workdir runs/squad2 --objective.no_answer 0 --steps 5450 \
        --data.train.name squad/v2.0 --data.validation.name squad/v2.0 --data.batch 48

A step sees windows, of which a long context gives several. Not run to its end yet: no accelerator was at hand.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.question_answering import LABELS, QuestionAnswering
from jaxformer.training.optimizers import AdamW, Schedule

WEIGHTS = "google-bert/bert-base-uncased"

experiment = Experiment(
    model=Classifier(
        Bert(
            Transformer(768, 12, 12, norm=LayerNorm(1e-12), norm_position="after", dtype="bfloat16", remat="dots"),
            heads=(),
        ),
        LABELS,
        reads="tokens",
    ),
    objective=QuestionAnswering(),
    data=Data(
        train=Tfds("squad/v1.1", split="train"),
        validation=Tfds("squad/v1.1", split="validation"),
        task=AnswerSpans(length=384, stride=128, question_length=64),
        batch=32,
        workers=4,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=AdamW(schedule=Schedule(peak=5e-5, warmup=830, decay="linear"), weight_decay=0.01),
    steps=8_300,
    evaluation=Evaluation(every=1_000),
    checkpoint=Checkpoint(every=1_000, best="f1", best_is="highest"),
    log=Log(every=100),
)
