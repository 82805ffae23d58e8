"""Memory and time of a training step as rows grow from 512 to 8,192 tokens.

    python benchmarks/long.py

A GPT of 2 layers × 128, 4 heads, one row a step. The compiler's own count of a step's temporary memory is compared with
one that grows linearly from the shortest row; attention whose matrices all exist at once would need 16 times that.
"""

import argparse
import functools
import json
import statistics
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.transformer import Transformer
from jaxformer.losses.cross_entropy import decoded_cross_entropy
from jaxformer.models.gpt import Gpt

LENGTHS = (512, 1024, 2048, 4096, 8192)
LINEAR = 1.3
"""Growth a doubling may have over a linear one, to the longest row in all."""


def measure(length: int, turns: int) -> tuple[float, float]:
    """Bytes of temporaries and median seconds of loss and gradient for one row."""
    model = Gpt(Transformer(128, 2, 4, dropout=0.0, attention_dropout=0.0), vocab=512, max_length=length)
    tokens = jnp.zeros((1, length), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens[:, :8]))["params"]

    @functools.partial(jax.jit)
    def step(params, tokens):
        def loss(params):
            output = model.apply({"params": params}, tokens, segments=jnp.ones_like(tokens))
            weights = jnp.ones(tokens.shape)
            return decoded_cross_entropy(output.hidden, output.lm_head, tokens, weights).loss.value

        return jax.value_and_grad(loss)(params)

    compiled = step.lower(params, tokens).compile()
    seconds = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, tokens))
        seconds.append(time.perf_counter() - start)
    return compiled.memory_analysis().temp_size_in_bytes, statistics.median(seconds[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="timed steps of each length")
    options = parser.parse_args()
    sizes = {}
    for length in LENGTHS:
        sizes[length], seconds = measure(length, options.turns)
        print(f"{length:5} tokens   {sizes[length] / 2**20:8.1f} MiB   {seconds * 1e3:8.0f} ms a step")
    growth = LENGTHS[-1] / LENGTHS[0] * sizes[LENGTHS[0]] / sizes[LENGTHS[-1]]
    goal = 1 / LINEAR
    print(json.dumps({"benchmark": "long", "ratio": round(growth, 2), "goal": round(goal, 2), "met": growth >= goal}))
    return 0 if growth >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
