"""One training step of GPT here and in PyTorch: tokens a second, in turns, in one run.

    pip install '.[torch]' && python benchmarks/gpt_step.py

The same model on both sides: 6 layers × 256, 4 heads, vocabulary 8,192, 8 rows of 256 tokens, dropout 0, AdamW with
clipping, float32. PyTorch's side is transformers' GPT2LMHeadModel, eager and through torch.compile. Each side has a
process of its own, and they take turns.
"""

import sys
from collections.abc import Callable

import numpy as np
from turns import compare_with_torch, training_step

ROWS, LENGTH, VOCAB, WIDTH, DEPTH, HEADS = 8, 256, 8192, 256, 6, 4
GOALS = {"eager": 2.0, "compiled": 1.4, "products": 0.77}


def experiment():
    """The experiment that `fit` would run; its data is not read."""
    from jaxformer.config import Experiment
    from jaxformer.data.pipeline.loader import Data
    from jaxformer.data.sources.sources import TextFiles
    from jaxformer.data.tasks.causal_lm import NextToken
    from jaxformer.data.tokenizers import SentencePiece
    from jaxformer.layers.mlp import Mlp
    from jaxformer.layers.norms import LayerNorm
    from jaxformer.layers.transformer import Transformer
    from jaxformer.models.gpt import Gpt
    from jaxformer.objectives.causal_lm import CausalLM
    from jaxformer.training.optimizers import AdamW

    transformer = Transformer(
        WIDTH,
        DEPTH,
        HEADS,
        mlp=Mlp(activation="gelu_tanh"),
        norm=LayerNorm(1e-5),
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
    )
    return Experiment(
        model=Gpt(transformer, VOCAB, LENGTH),
        objective=CausalLM(),
        data=Data(TextFiles(("not read",)), NextToken(LENGTH), ROWS, pack=True),
        tokenizer=SentencePiece(VOCAB),
        optimizer=AdamW(weight_decay=0.01, clip=1.0),
        steps=1_000_000,
    )


def jaxformer_step() -> Callable[[], None]:
    """Our training step, on random tokens."""
    return training_step(experiment(), random_batch())


def torch_step(compiled: bool) -> Callable[[], None]:
    """transformers' GPT2LMHeadModel with the same data and the same optimizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS, **rates)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batch = random_batch()
    tokens, targets = (torch.from_numpy(batch[name]).long() for name in ("tokens", "targets"))
    forward = torch.compile(model) if compiled else model

    def step():
        logits = forward(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batch() -> dict[str, np.ndarray]:
    """The rows that both sides train on."""
    text = np.random.default_rng(0).integers(5, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "tokens": text[:, :-1],
        "targets": text[:, 1:],
        "weights": np.ones((ROWS, LENGTH), np.float32),
        "segments": np.ones((ROWS, LENGTH), np.int32),
        "position_ids": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
    }


def step_flops() -> float:
    """Floating-point operations of our step's matrix products: forward once, backward twice."""
    return 3.0 * experiment().model.flops({"b": ROWS, "t": LENGTH})


if __name__ == "__main__":
    sides = jaxformer_step, torch_step
    sys.exit(compare_with_torch("gpt_step", __doc__, *sides, GOALS, ROWS * LENGTH, step_flops(), turns=15))
