"""Computes single decoding steps: `start` runs the prefill of the prompts, and `step` computes the logits of each
further token.

Models generate through `Model.encode_prompt` and `Model.decode`, which accept prompts of any modality. Prompts of
different lengths are left-padded, so that the next token of every row is written to the same cache slot.
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
    """Batch of padded prompts, with the data that decoding needs."""

    tokens: jax.Array | np.ndarray
    """Tokens that the output continues, integers [batch, length], left-padded. For a decoder-only model, the prompt;
    for an encoder–decoder, the start token or a forced prefix, such as language and task tokens.
    """
    segments: jax.Array | np.ndarray
    """Mask of `tokens`, integers [batch, length]: 1 for tokens, 0 for padding."""
    rules: Rules
    """Data for the logits processors, such as maximum lengths and end tokens."""
    inputs: Mapping[str, jax.Array | np.ndarray] = flax.struct.field(default_factory=dict)
    """Encoder inputs, arrays [batch, ...], named as the arguments of `Model.encode_prompt`. Empty without an encoder.
    """
    prefix: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether attention among `tokens` is bidirectional, for a prefix language model."""
    scored: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether to compute the log-probabilities of the outputs."""


class Next(NamedTuple):
    """Result of a decoding step, from which the next token is chosen."""

    logits: jax.Array
    """Logits of the next token of each row, float32 [batch, vocab]."""
    position_ids: jax.Array
    """Position of the next token in each row, integers [batch]."""
    cache: Cache
    """Keys and values of all previous tokens."""


def ready(model: Model, params: Any) -> Any:
    """Prepares parameters for decoding: splits stacked block parameters into one tree per block, and converts kernels
    to the compute dtype.

    Without this, each step of the decoding loop would slice and convert them again.
    """
    name, stack = list(model.stacks().items())[-1]
    if isinstance(params[name]["blocks"], tuple):
        return params
    blocks = params[name]["blocks"]
    shardings = tuple(map(_of_one_block, jax.tree.leaves(blocks)))
    blocks = _apart(blocks, dtype=compute_dtype(stack.dtype), shardings=shardings)
    return {**params, name: {**params[name], "blocks": blocks}}


def start(model: Model, params: Any, prompts: Prompts, room: int) -> Next:
    """Runs the prefill: computes the cache of the prompts and the logits of the first new token.

    Args:
      model: Generative model.
      params: Parameters, optionally prepared by `ready`.
      prompts: Prompts of the batch.
      room: Number of cache slots for new tokens.
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
    """Runs one decoding step.

    Args:
      model: Generative model.
      params: Parameters, optionally prepared by `ready`.
      tokens: Last token of each row, integers [batch].
      position_ids: Positions of these tokens, integers [batch].
      cache: Keys and values of the previous tokens.
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
    """Shards the rows and heads of a cache over the mesh."""

    def lay(keys):
        return jax.tree.map(lambda array: sharding.constrain(array, "bgsk"), keys)

    layers = tuple(dataclasses.replace(layer, keys=lay(layer.keys)) for layer in cache.layers)
    return dataclasses.replace(cache, layers=layers, memory=lay(cache.memory))


def _of_one_block(stack: jax.Array) -> NamedSharding | None:
    """Returns the sharding for the array of one block, which is a slice of the stacked array. None if the array is not
    on a mesh.
    """
    found = getattr(stack, "sharding", None)
    return NamedSharding(found.mesh, PartitionSpec(*found.spec[1:])) if isinstance(found, NamedSharding) else None


@functools.partial(jax.jit, static_argnames=("dtype", "shardings"))
def _apart(blocks: Any, dtype: jnp.dtype, shardings: tuple[NamedSharding | None, ...]) -> tuple[Any, ...]:
    """Splits stacked parameters into one tree per block, and converts kernels to `dtype`.

    Args:
      blocks: stacked parameters, with a leading layer axis.
      dtype: type to convert kernels to.
      shardings: sharding of each array of one block.
    """

    def convert(path, array):  # Same conversion as `Linear` applies at each call.
        return array.astype(dtype) if path[-1].key == "kernel" else array

    def lay(array, place):
        return array if place is None else jax.lax.with_sharding_constraint(array, place)

    def laid(block):
        leaves, structure = jax.tree.flatten(block)
        return structure.unflatten(map(lay, leaves, shardings))

    return tuple(map(laid, unstacked(jax.tree_util.tree_map_with_path(convert, blocks))))
