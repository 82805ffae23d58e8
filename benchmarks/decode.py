"""Greedy decoding with a cache here and in PyTorch: new tokens a second, in turns, in one run.

    pip install '.[torch]' && python benchmarks/decode.py

The same GPT on both sides: 6 layers × 256, 4 heads, vocabulary 8,192, float32; 128 new tokens after prompts of 32, for
1 and for 16 rows. PyTorch's side is transformers' `generate`. Each side has a process of its own, and they take turns.
"""

import argparse
import functools
import sys
from collections.abc import Callable

import numpy as np
from turns import OURS, compare, conclude, take_turns

PROMPT, NEW, VOCAB, WIDTH, DEPTH, HEADS = 32, 128, 8192, 256, 6, 4
GOALS = {1: 4.0, 16: 3.0}


def jaxformer_generate(rows: int) -> Callable[[], None]:
    """Our `generate`, from ids to ids."""
    import flax.linen as nn
    import jax

    from jaxformer.decoding.generate import generate
    from jaxformer.decoding.settings import Decoding
    from jaxformer.layers.mlp import Mlp
    from jaxformer.layers.norms import LayerNorm
    from jaxformer.layers.transformer import Transformer
    from jaxformer.models.gpt import Gpt

    transformer = Transformer(
        WIDTH, DEPTH, HEADS, mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5), dtype="float32"
    )
    model = Gpt(transformer, VOCAB, PROMPT + NEW)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), prompts(1)))["params"]

    def step():
        outputs = generate(model, params, list(prompts(rows)), Decoding(max_new_tokens=NEW))
        assert all(len(output) == NEW for output in outputs)

    return step


def torch_generate(rows: int) -> Callable[[], None]:
    """transformers' `generate`, from ids to ids."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=PROMPT + NEW, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS)
    model = GPT2LMHeadModel(config).eval()
    tokens = torch.from_numpy(prompts(rows)).long()
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def step():
        with torch.no_grad():
            outputs = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        assert outputs.shape == (rows, PROMPT + NEW)

    return step


def prompts(rows: int) -> np.ndarray:
    """The prompts of both sides, int32 [rows, PROMPT]."""
    return np.random.default_rng(0).integers(5, VOCAB, (rows, PROMPT)).astype(np.int32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="timed calls of each side")
    options = parser.parse_args()
    results = []
    for rows, goal in GOALS.items():
        sides = {
            OURS: functools.partial(jaxformer_generate, rows),
            "generate": functools.partial(torch_generate, rows),
        }
        seconds = take_turns(sides, options.turns)
        results += compare(f"decode/batch_{rows}", seconds, {"generate": goal}, rows * NEW)
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
