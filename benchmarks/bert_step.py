"""One training step of BERT here and in PyTorch: tokens a second, in turns, in one run.

    pip install '.[torch]' && python benchmarks/bert_step.py

The same model on both sides: 4 layers × 256, 4 heads, vocabulary 30,522, 32 rows of 128 tokens, 15% of them masked,
masked LM and next sentences, dropout 0.1, AdamW with clipping, float32. PyTorch's side is transformers'
BertForPreTraining, eager and through torch.compile. Each side has a process of its own, and they take turns, so that
neither a noisy machine nor the other's threads favour one of them.
"""

import sys
from collections.abc import Callable

import numpy as np
from turns import compare_with_torch, training_step

ROWS, LENGTH, MASKED, VOCAB, WIDTH, DEPTH, HEADS = 32, 128, 20, 30_522, 256, 4, 4
GOALS = {"eager": 6.0, "compiled": 4.0, "products": 0.77}


def experiment():
    """The experiment that `fit` would run; its data is not read."""
    from jaxformer.config import Experiment
    from jaxformer.data.pipeline.loader import Data
    from jaxformer.data.sources.sources import TextFiles
    from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
    from jaxformer.data.tokenizers import WordPiece
    from jaxformer.layers.norms import LayerNorm
    from jaxformer.layers.transformer import Transformer
    from jaxformer.models.bert import Bert
    from jaxformer.objectives.masked_lm import MaskedLM
    from jaxformer.training.optimizers import AdamW

    transformer = Transformer(WIDTH, DEPTH, HEADS, norm=LayerNorm(1e-12), norm_position="after", dtype="float32")
    return Experiment(
        model=Bert(transformer, VOCAB),
        objective=MaskedLM(),
        data=Data(TextFiles(("not read",)), MaskedSentencePairs(LENGTH, MASKED), ROWS),
        tokenizer=WordPiece(VOCAB),
        optimizer=AdamW(weight_decay=0.01, clip=1.0),
        steps=1_000_000,
    )


def jaxformer_step() -> Callable[[], None]:
    """Our training step, on random tokens."""
    return training_step(experiment(), random_batch())


def torch_step(compiled: bool) -> Callable[[], None]:
    """transformers' BertForPreTraining with the same data and the same optimizer."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
    )
    model = BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batch = {name: torch.from_numpy(array).long() for name, array in random_batch().items() if name != "weights"}
    labels = torch.full((ROWS, LENGTH), -100).scatter(1, batch["masked_positions"], batch["targets"])
    forward = torch.compile(model) if compiled else model

    def step():
        loss = forward(
            input_ids=batch["tokens"],
            attention_mask=batch["segments"],
            token_type_ids=batch["token_types"],
            labels=labels,
            next_sentence_label=batch["next_sentence"][:, 0],
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batch() -> dict[str, np.ndarray]:
    """The rows that both sides train on."""
    draw = np.random.default_rng(0)
    masked = np.stack([draw.permutation(LENGTH - 1)[:MASKED] + 1 for _ in range(ROWS)])
    return {
        "tokens": draw.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "segments": np.ones((ROWS, LENGTH), np.int32),
        "position_ids": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "token_types": (np.arange(LENGTH) > draw.integers(30, 90, (ROWS, 1))).astype(np.int32),
        "masked_positions": masked.astype(np.int32),
        "targets": draw.integers(5, VOCAB, (ROWS, MASKED)).astype(np.int32),
        "weights": np.ones((ROWS, MASKED), np.float32),
        "cls_positions": np.zeros((ROWS, 1), np.int32),
        "next_sentence": draw.integers(0, 2, (ROWS, 1)).astype(np.int32),
        "next_sentence_weights": np.ones((ROWS, 1), np.float32),
    }


def step_flops() -> float:
    """Floating-point operations of our step's matrix products: forward once, backward twice."""
    return 3.0 * experiment().model.flops({"b": ROWS, "t": LENGTH, "m": MASKED, "c": 1})


if __name__ == "__main__":
    sides = jaxformer_step, torch_step
    sys.exit(compare_with_torch("bert_step", __doc__, *sides, GOALS, ROWS * LENGTH, step_flops(), turns=10))
