"""Greedy decoding with a cache here and in PyTorch: new tokens a second, in turns, in one run.

    pip install '.[torch]' && python benchmarks/decode.py

The same GPT on both sides: 6 layers × 256, 4 heads, vocabulary 8,192, float32; 128 new tokens after prompts of 32, for
1 and for 16 rows. PyTorch's side is transformers' `generate`. A third side, `products`, bounds both: it only multiplies
the vectors of the new tokens by all kernels of the model, which it has to read from memory for each token. Each side
has a process of its own, and they take turns.
"""

import argparse
import functools
import sys
from collections.abc import Callable

import numpy as np
from turns import OURS, PRODUCTS, compare, conclude, take_turns

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


def decoding_products(rows: int) -> Callable[[], None]:
    """The products of vectors and kernels that the new tokens take, one token after the other, in JAX."""
    import jax
    import jax.numpy as jnp

    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    draw = np.random.default_rng(0)
    sizes = [(shape, shape[0] ** -0.5) for shape in shapes]
    kernels = [[draw.normal(0, std, shape).astype(np.float32) for shape, std in sizes] for _ in range(DEPTH)]
    head = draw.normal(0, WIDTH**-0.5, (WIDTH, VOCAB)).astype(np.float32)

    @jax.jit
    def decode(kernels, head, x):
        def token(x, _):
            for mixed, output, up, down in kernels:
                x = (x @ mixed)[:, :WIDTH] @ output
                x = (x @ up) @ down
            return x / jnp.abs(x @ head).max(), None

        return jax.lax.scan(token, x, length=NEW)[0]

    arguments = jax.device_put((kernels, head, jnp.ones((rows, WIDTH))))
    return lambda: jax.block_until_ready(decode(*arguments))


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
            PRODUCTS: functools.partial(decoding_products, rows),
        }
        seconds = take_turns(sides, options.turns)
        results += compare(f"decode/batch_{rows}", seconds, {"generate": goal}, rows * NEW)
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
