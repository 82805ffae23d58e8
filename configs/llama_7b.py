"""LLaMA 7B (Touvron et al. 2023), on C4, its parameters and optimizer split over all devices.

    python train.py configs/llama_7b.py --workdir runs/llama_7b

The paper's model, optimizer and batch of four million tokens; it trains for one trillion tokens on a mixture of
which C4 is the second largest part. Not run: no accelerator was at hand.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.language import NextToken
from jaxformer.data.tokenizers import SentencePiece
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.language_model import LanguageModel
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.optimizers import AdamW, Schedule

experiment = Experiment(
    model=Gpt(
        Transformer(
            width=4096,
            depth=32,
            heads=32,
            attention=Attention(bias=False),
            mlp=GatedMlp(11_008),
            norm=RMSNorm(1e-6),
            positions=Rotary(),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            remat="full",
        ),
        vocab=32_000,
        positions=2048,
        tied=False,
    ),
    objective=LanguageModel(),
    data=Data(
        train=Tfds("c4/en", split="train"),
        validation=Tfds("c4/en", split="validation"),
        task=NextToken(length=2048),
        batch=2048,
        pack=True,
        workers=16,
    ),
    tokenizer=SentencePiece(vocab=32_000, model_type="bpe"),
    optimizer=AdamW(schedule=Schedule(peak=3e-4, warmup=2_000, decay="cosine", end=0.1), weight_decay=0.1, b2=0.95),
    steps=238_000,
    mesh=Mesh(data=1, fsdp=-1),
    evaluation=Evaluation(every=2_000, batches=20),
    checkpoint=Checkpoint(every=1_000),
    log=Log(every=20),
)
