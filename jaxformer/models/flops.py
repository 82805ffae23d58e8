"""Floating-point operations of the matrix products in a forward pass: two for each multiplication."""

from jaxformer.layers.transformer import Transformer


def linear_flops(*sizes: int) -> float:
    """A product of matrices whose axes have these sizes: tokens, inputs and outputs."""
    flops = 2.0
    for size in sizes:
        flops *= size
    return flops


def stack_flops(
    stack: Transformer, tokens: int, outputs: int | None = None, memory: int = 0, causal: bool = False
) -> float:
    """A stack on one row.

    Args:
      stack: its blocks have attention with `sizes` and an MLP with `flops`.
      tokens: in the row.
      outputs: positions whose output is wanted: the last block computes only keys and values for the others. None: all.
      memory: tokens that cross-attention attends to; 0 without cross-attention.
      causal: whether a token attends to half of the others on average.
    """
    groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
    inner = stack.heads * head_dim

    def attention(queries: int, keys: int, attended: float) -> float:
        maps = 2 * linear_flops(queries, stack.width, inner) + 2 * linear_flops(keys, stack.width, groups * head_dim)
        return maps + 4.0 * queries * attended * inner

    def block(queries: int) -> float:
        flops = attention(queries, tokens, tokens / 2 if causal else tokens)
        if memory:
            flops += attention(queries, memory, memory)
        return flops + queries * stack.mlp.flops(stack.width)

    return (stack.depth - 1) * block(tokens) + block(tokens if outputs is None else outputs)
