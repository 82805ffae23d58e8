"""Functions that compute the FLOPs of the matrix products in a forward pass. Each multiply-add counts as two
operations.
"""

from typing import Any

from jaxformer.layers.transformer import Transformer, Variant


def linear_flops(*sizes: int) -> float:
    """Returns the FLOPs of multiplying vectors by a matrix: twice the product of `sizes`. These are the numbers of
    vectors (if more than one), of inputs and of outputs.
    """
    flops = 2.0
    for size in sizes:
        flops *= size
    return flops


def stack_flops(
    stack: Transformer, tokens: int, outputs: int | None = None, memory: int = 0, causal: bool = False
) -> float:
    """Returns the FLOPs of a stack of Transformer blocks for one batch row.

    Args:
      stack: stack of Transformer blocks. Its attention layer has a method `sizes`, and its MLP has a method `flops`.
      tokens: number of tokens in the row.
      outputs: number of positions whose output is needed. At all other positions, the last block computes only keys and
        values. If None, all positions are needed.
      memory: number of encoder output vectors that cross-attention attends to. 0 without cross-attention.
      causal: whether attention is causal, so that a token attends to half of the tokens on average.
    """
    kinds = stack.period or (Variant(),)

    def attention(module: Any, queries: int, keys: int, attended: float) -> float:
        groups, head_dim = module.sizes(stack.heads, stack.width)
        inner, window = stack.heads * head_dim, getattr(module, "window", None)
        if window is not None:
            attended = min(attended, window if causal else 2 * window - 1)
        maps = 2 * linear_flops(queries, stack.width, inner) + 2 * linear_flops(keys, stack.width, groups * head_dim)
        return maps + 4.0 * queries * attended * inner

    def block(number: int, queries: int) -> float:
        kind = kinds[number % len(kinds)]
        module = kind.attention or stack.attention
        flops = attention(module, queries, tokens, tokens / 2 if causal else tokens)
        if memory:
            flops += attention(module, queries, memory, memory)
        return flops + queries * (kind.mlp or stack.mlp).flops(stack.width)

    last = stack.depth - 1
    return sum(block(number, tokens) for number in range(last)) + block(last, tokens if outputs is None else outputs)
