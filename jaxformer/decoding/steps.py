"""Single steps of text generation: `start` runs the prefill of the prompts, and `step` runs the model on one new token
per batch row.

They call `Model.encode_prompt` and `Model.decode`, so prompts can have any modality. Prompts of different lengths are
left-padded, so that the new tokens of all rows are written to the same cache slot.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.decoding.rules import Rules
from jaxformer.layers.cache import Cache
from jaxformer.layers.linear import compute_dtype
from jaxformer.layers.stack import unstacked
from jaxformer.models.base import Model
from jaxformer.parallel import sharding


@flax.struct.dataclass
class Prompts:
    """Batch of padded prompts, with further inputs of the decoding functions."""

    tokens: jax.Array | np.ndarray
    """Token ids that the outputs continue, integers [batch, length], left-padded: the prompts of a decoder, or the
    decoder start tokens of an encoder–decoder, which may include language and task tokens.
    """
    segments: jax.Array | np.ndarray
    """Mask of `tokens`, integers [batch, length]: 1 for tokens, 0 for padding."""
    rules: Rules
    """Inputs of the logits processors, such as maximum lengths and EOS tokens."""
    inputs: Mapping[str, jax.Array | np.ndarray] = flax.struct.field(default_factory=dict)
    """Encoder inputs, arrays [batch, ...] keyed by argument name of `Model.encode_prompt`. Empty for a model without an
    encoder.
    """
    prefix: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether attention among `tokens` is bidirectional, for a prefix language model."""
    scored: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to compute the log-probabilities of the outputs. Beam search always computes them."""


class Next(NamedTuple):
    """Result of a decoding step, from which the next token of each row is chosen."""

    logits: jax.Array
    """Logits of the next token of each row, float32 [batch, vocab]."""
    position_ids: jax.Array
    """Position id of the next token of each row, integers [batch]."""
    cache: Cache
    """Key-value cache of all tokens before the next one."""


def ready(model: Model, params: Any) -> Any:
    """Prepares parameters for decoding: splits the stacked parameters of the Transformer blocks into one tree per
    block, and converts kernels to the compute dtype. Otherwise, each step of the decoding loop would repeat this.
    """
    name, stack = list(model.stacks().items())[-1]
    if isinstance(params[name]["blocks"], tuple):
        return params
    blocks = params[name]["blocks"]
    shardings = tuple(map(_of_one_block, jax.tree.leaves(blocks)))
    blocks = _apart(blocks, dtype=compute_dtype(stack.dtype), shardings=shardings)
    return {**params, name: {**params[name], "blocks": blocks}}


def start(model: Model, params: Any, prompts: Prompts, room: int) -> Next:
    """Runs the prefill: the model reads the prompts. Returns the logits of the first new token, and the key-value cache
    of the prompts.

    Args:
      model: generative model.
      params: parameters, optionally prepared by `ready`.
      prompts: prompts of the batch.
      room: number of cache slots to add for new tokens.
    """
    tokens, segments = (sharding.constrain(jnp.asarray(array), "bt") for array in (prompts.tokens, prompts.segments))
    rows, length = tokens.shape
    position_ids = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    cache = dataclasses.replace(model.new_cache(rows, length), segments=segments)
    hidden = None
    if prompts.inputs:
        inputs = {name: _by_rows(array) for name, array in prompts.inputs.items()}
        memory = model.apply({"params": params}, **inputs, method="encode_prompt")
        hidden, cache = memory.hidden, dataclasses.replace(cache, memory_segments=memory.segments)
    prefix = segments > 0 if prompts.prefix else None
    output = _decode(model, params, tokens, position_ids, _laid(cache), memory=hidden, prefix=prefix)
    cache = output.cache.room_for(room)
    cache = dataclasses.replace(cache, segments=cache.segments.at[:, length:].set(1))
    return Next(_last(output), position_ids[:, -1] + 1, _laid(cache))


def step(model: Model, params: Any, tokens: jax.Array, position_ids: jax.Array, cache: Cache) -> Next:
    """Runs one decoding step: the model reads the newest token of each row. Returns the logits of the next token, and
    the updated cache.

    Args:
      model: generative model.
      params: parameters, optionally prepared by `ready`.
      tokens: newest token of each row, integers [batch].
      position_ids: position id of each of these tokens, integers [batch].
      cache: key-value cache of the tokens before them.
    """
    places = jnp.minimum(position_ids, model.max_length - 1)  # A row that has ended keeps its position.
    output = _decode(model, params, tokens[:, None], places[:, None], cache)
    return Next(_last(output), position_ids + 1, output.cache)


def _decode(model: Model, params: Any, *arrays: Any, **options: Any) -> Any:
    return model.apply({"params": params}, *arrays, **options, method="decode")


def _by_rows(array: jax.Array | np.ndarray) -> jax.Array:
    return sharding.constrain(jnp.asarray(array), "b" + "_" * (array.ndim - 1))


def _last(output) -> jax.Array:
    return sharding.constrain(output.lm_head.logits(output.hidden[:, -1]), "bv")


def _laid(cache: Cache) -> Cache:
    """Adds sharding constraints to a key-value cache, which shard its batch rows and heads over the mesh."""

    def lay(keys):
        return jax.tree.map(lambda array: sharding.constrain(array, "bgsk"), keys)

    layers = tuple(dataclasses.replace(layer, keys=lay(layer.keys)) for layer in cache.layers)
    return dataclasses.replace(cache, layers=layers, memory=lay(cache.memory))


def _of_one_block(stack: jax.Array) -> NamedSharding | None:
    """Returns the sharding of one block's slice of an array that is stacked over blocks. None if the array is not
    sharded over a mesh.
    """
    found = getattr(stack, "sharding", None)
    return NamedSharding(found.mesh, PartitionSpec(*found.spec[1:])) if isinstance(found, NamedSharding) else None


@functools.partial(jax.jit, static_argnames=("dtype", "shardings"))
def _apart(blocks: Any, dtype: jnp.dtype, shardings: tuple[NamedSharding | None, ...]) -> tuple[Any, ...]:
    """Splits stacked block parameters into a tuple with one tree per block, and converts kernels to `dtype`.

    Args:
      blocks: tree of parameters that are stacked along a leading layer axis.
      dtype: type to which kernels are converted.
      shardings: sharding of each array of a block, in the order of the tree's leaves. None for an array that is not
        sharded.
    """

    def convert(path, array):  # Same conversion as `Linear` applies at each call.
        return array.astype(dtype) if path[-1].key == "kernel" else array

    def lay(array, place):
        return array if place is None else jax.lax.with_sharding_constraint(array, place)

    def laid(block):
        leaves, structure = jax.tree.flatten(block)
        return structure.unflatten(map(lay, leaves, shardings))

    return tuple(map(laid, unstacked(jax.tree_util.tree_map_with_path(convert, blocks))))
