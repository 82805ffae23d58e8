"""Vectors of sentences, from nothing: which description of a Debian package belongs to which summary, on two CPU cores.

    python train.py configs/sentence_embeddings.py --workdir runs/sentence_embeddings
    jaxformer predict runs/sentence_embeddings "a chess game" "play chess online" "mail server" "an SMTP daemon"

Measured: of the 128 descriptions in a batch of held-out packages, the nearest to a summary is its own for 83% after
2,000 steps; without dropout and deletion for 80% after 1,500, when the training has little left to learn from (99%).
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.tokenizers import SentencePiece
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.training.optimizers import AdamW, Schedule

STACK = Transformer(128, 3, 4, norm=LayerNorm(1e-12), norm_position="after", dropout=0.1, attention_dropout=0.0)
# Without deletion a single rare word, such as the program's name, would give most pairs away.
AUGMENTATION = TextAugmentation(deletion=0.3)

experiment = Experiment(
    model=Bert(STACK, vocab=8192, positions=64, heads=()),
    objective=SentenceEmbedding(),
    data=Data(
        train=Tfds("debian_descriptions/summaries", split="train"),
        validation=Tfds("debian_descriptions/summaries", split="validation"),
        task=TextPairs(64, "summary", "description", input_length=24, augmentation=AUGMENTATION),
        batch=128,
    ),
    tokenizer=SentencePiece(vocab=8192),
    optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=100)),
    steps=2000,
    evaluation=Evaluation(every=500),
    checkpoint=Checkpoint(every=500),
    log=Log(every=50),
)
