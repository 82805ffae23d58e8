"""BERT large as in the paper (Devlin et al. 2019, §3), in bfloat16, its parameters split over 8 devices.

    python train.py configs/bert_large.py --workdir runs/bert_large
    python train.py configs/bert_large.py --mesh.fsdp 4 --mesh.tensor 2 --workdir runs/bert_large

Written out, not derived from bert_base.py, so that each config reads by itself; its two phases apply here too. Not run
to its end yet: no accelerator was at hand. The paper's result is GLUE 82.1 after fine-tuning.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.base import MaskedSentencePairs
from jaxformer.data.tokenizers import WordPiece
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.optimizers import AdamW, Schedule

experiment = Experiment(
    model=Bert(
        Transformer(
            width=1024,
            depth=24,
            heads=16,
            norm=LayerNorm(1e-12),
            norm_position="after",
            dtype="bfloat16",
            remat="dots",
        ),
        vocab=30_522,
    ),
    objective=MaskedLM(),
    data=Data(
        train=Tfds("wikipedia/20230601.en", split="train[1%:]"),
        validation=Tfds("wikipedia/20230601.en", split="train[:1%]"),
        task=MaskedSentencePairs(length=512, predictions=76),
        batch=256,
        workers=8,
    ),
    tokenizer=WordPiece(vocab=30_522),
    optimizer=AdamW(schedule=Schedule(peak=1e-4, warmup=10_000, decay="linear"), weight_decay=0.01),
    steps=1_000_000,
    mesh=Mesh(fsdp=8),
    evaluation=Evaluation(every=10_000, batches=100),
    checkpoint=Checkpoint(every=5_000, best="loss"),
    log=Log(every=100),
)
