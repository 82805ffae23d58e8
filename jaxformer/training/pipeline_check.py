"""Small Transformer stack with which `self_check` compares a pipeline with a loop over the blocks.

The pipeline is that of the run: the same mesh, schedule, rematerialisation and number of kinds of blocks. The blocks
are small, because the pipeline does not depend on what they compute. They compute in float32, so that rounding does not
hide small errors.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxformer.layers.attention import Attention
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.pipeline import Schedule
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.parallel import metadata, sharding

LENGTH = 32
"""Number of tokens in each batch row."""
HEAD = 16
"""Size of an attention head. The width of the model is this number times the number of heads."""
BLOCKS = 2
"""Number of periods of blocks that a stage computes in a row, so that their order matters."""


def small_stack(stack: Transformer, schedule: Schedule, mesh: jax.sharding.Mesh) -> Transformer:
    """Returns a small stack that runs in the same way as a stack of the model.

    Args:
      stack: stack of the model.
      schedule: pipeline schedule of the run.
      mesh: mesh of the run. Each device along its axis `tensor` has at least one attention head.
    """
    kinds, heads = len(stack.kinds), max(4, mesh.shape["tensor"])
    # Each kind has another window, so that the order of the kinds matters.
    period = tuple(Variant(attention=Attention(window=4 * (number + 1))) for number in range(kinds))
    return Transformer(
        width=HEAD * heads,
        depth=BLOCKS * schedule.parts * kinds,
        heads=heads,
        mlp=Mlp(width=2 * HEAD * heads),
        position_embedding=Rotary(100.0),
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
        remat=stack.remat,
        unroll=1,
        period=period if kinds > 1 else (),
    )


def random_rows(stack: Transformer, rows: int) -> dict[str, np.ndarray]:
    """Returns random inputs of a small stack, and the gradient with respect to its output (`cotangent`). Masks and
    positions differ between rows, because they must stay with their rows on the way through the pipeline.
    """
    random, shape = np.random.default_rng(0), (rows, LENGTH, stack.width)
    segments = np.sort(random.integers(1, 4, (rows, LENGTH)))
    return {
        "x": random.normal(size=shape).astype(np.float32),
        "segments": segments.astype(np.int32),
        "position_ids": random.integers(0, LENGTH, (rows, LENGTH)).astype(np.int32),
        "cotangent": random.normal(size=shape).astype(np.float32),
    }


def random_params(stack: Transformer) -> Any:
    """Returns random parameters of a small stack. No two blocks have similar ones, so that their order matters."""
    random = np.random.default_rng(1)

    def draw(leaf):
        is_kernel = leaf.ndim > 2  # Also biases of heads; vectors are the scales of norms and other biases.
        values = random.normal(size=leaf.shape)
        return (values * stack.width**-0.5 if is_kernel else 1 + values / 4).astype(np.float32)

    return jax.tree.map(draw, nn.unbox(_boxed_params(stack)))


def output(stack: Transformer, arrays: Mapping[str, Any]) -> jax.Array:
    """Computes the output of a small stack, [batch, length, embed]: in a pipeline if the current mesh has one,
    otherwise in a loop over the blocks.

    Args:
      stack: stack from `small_stack`.
      arrays: inputs from `random_rows`, and under the key `params` the parameters from `random_params`.
    """
    params = jax.tree.map(
        lambda box, array: sharding.constrain(array, box.letters),
        _boxed_params(stack),
        arrays["params"],
        is_leaf=metadata.is_boxed,
    )
    # Trains, because only then does a stack refuse what it cannot run in a pipeline, instead of running it without one.
    inputs = BlockInputs(Mask.causal(LENGTH, arrays["segments"]), arrays["position_ids"], train=True)
    with jax.default_matmul_precision("highest"):
        result: Any = stack.apply({"params": params}, arrays["x"], inputs, rngs={"dropout": jax.random.key(0)})
    return result.hidden


def _boxed_params(stack: Transformer) -> Any:
    """Returns the shapes of the parameters, each wrapped in a `metadata.Boxed`, which names its axes."""
    x = jax.ShapeDtypeStruct((1, LENGTH, stack.width), np.float32)
    return jax.eval_shape(stack.init, jax.random.key(0), x)["params"]
