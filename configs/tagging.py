"""Parts of speech in the Brown corpus, from nothing, on two CPU cores.

python train.py configs/tagging.py --workdir runs/tagging
jaxformer predict runs/tagging "The old man the boat."

"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import WordPiece
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.tagging import Tagging
from jaxformer.training.optimizers import Muon, Schedule

TAGS = ("ADJ", "ADP", "ADV", "CONJ", "DET", "NOUN", "NUM", "PRON", "PRT", "VERB", "X", ".")

experiment = Experiment(
    model=Classifier(
        Bert(Transformer(width=128, depth=3, heads=4, dropout=0.1, attention_dropout=0.0), 8192, 128, heads=()),
        labels=TAGS,
        reads="tokens",
    ),
    objective=Tagging(),
    data=Data(
        train=Tfds("brown", split="train"),
        validation=Tfds("brown", split="validation"),
        task=TagTokens(TAGS, length=128),
        batch=16,
        pack=True,
    ),
    tokenizer=WordPiece(vocab=8192, lowercase=False),
    optimizer=Muon(schedule=Schedule(peak=2e-3, warmup=100, decay="cosine")),
    steps=1200,
    evaluation=Evaluation(every=400),
    checkpoint=Checkpoint(every=400),
    log=Log(every=50),
)
