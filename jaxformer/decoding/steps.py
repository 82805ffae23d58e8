"""What decoding asks of a model: read the prompts, then take a token more a row.

A causal model reads a prompt and goes on with it; an encoder–decoder reads it with its encoder and answers behind a
start token. Prompts of several lengths are padded on their left, so that all rows write to the same slot of the cache.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.decoding.rules import Rules
from jaxformer.layers.cache import Cache
from jaxformer.layers.linear import compute_dtype
from jaxformer.layers.stack import unstacked
from jaxformer.models.base import Model
from jaxformer.parallel import sharding


@flax.struct.dataclass
class Prompts:
    """What begins a batch of rows."""

    tokens: jax.Array
    """Integers [b, t], padded on the left."""
    segments: jax.Array
    """Integers [b, t]: 1, and 0 where there is padding."""
    start: jax.Array
    """Scalar: the token that begins an answer."""
    rules: Rules
    """What the new tokens must obey."""
    prefix: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether the tokens of a prompt see each other both ways, where the model is a prefix language model."""


class Next(NamedTuple):
    """What a model says about the next token of each row."""

    logits: jax.Array
    """float32 [b, v]."""
    position_ids: jax.Array
    """Integers [b]: where that token stands."""
    cache: Cache
    """Of all tokens before it."""


def answers(model: Model) -> bool:
    """Whether the model answers a prompt, as an encoder–decoder does, rather than going on with it."""
    return model.is_encoder_decoder


def ready(model: Model, params: Any) -> Any:
    """The parameters as decoding takes them: the blocks one by one, their matrices in the compute dtype.

    Inside a loop, each step would slice and convert them again.
    """
    name, stack = list(model.stacks().items())[-1]
    if isinstance(params[name]["blocks"], tuple):
        return params
    blocks = params[name]["blocks"]
    shardings = tuple(map(_of_one_block, jax.tree.leaves(blocks)))
    blocks = _apart(blocks, dtype=compute_dtype(stack.dtype), shardings=shardings)
    return {**params, name: {**params[name], "blocks": blocks}}


def prefill(model: Model, params: Any, prompts: Prompts, room: int) -> Next:
    """Reads the prompts.

    Args:
      model: a `Gpt` or an `EncoderDecoder`.
      params: its parameters, perhaps `ready`.
      prompts: what to read.
      room: slots for new tokens.
    """
    tokens, segments = (sharding.constrain(array, "bt") for array in (prompts.tokens, prompts.segments))
    rows, length = tokens.shape
    position_ids = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    if answers(model):
        encoded = model.apply({"params": params}, tokens, segments, position_ids, method="encode")
        cache = model.new_cache(rows, room)
        cache = cache.replace(segments=jnp.ones_like(cache.segments), memory_segments=segments)
        first = jnp.full((rows, 1), prompts.start, jnp.int32)
        arguments = (first, jnp.zeros_like(first), _laid(cache), encoded)
        output = model.apply({"params": params}, *arguments, method="decode")
        return Next(_last(output), jnp.ones(rows, jnp.int32), _laid(output.cache))
    cache = model.new_cache(rows, length).replace(segments=segments)
    prefix = {"prefix": segments > 0} if prompts.prefix else {}
    output = model.apply({"params": params}, tokens, position_ids=position_ids, cache=_laid(cache), **prefix)
    cache = output.cache.room_for(room)
    cache = cache.replace(segments=cache.segments.at[:, length:].set(1))
    return Next(_last(output), position_ids[:, -1] + 1, _laid(cache))


def step(model: Model, params: Any, tokens: jax.Array, position_ids: jax.Array, cache: Cache) -> Next:
    """Takes a token more a row, integers [b] at positions [b]."""
    places = jnp.minimum(position_ids, model.max_length - 1)  # A row that has ended stays where it is.
    arguments = {"tokens": tokens[:, None], "position_ids": places[:, None], "cache": cache}
    output = model.apply({"params": params}, **arguments, method="decode" if answers(model) else None)
    return Next(_last(output), position_ids + 1, output.cache)


def _last(output) -> jax.Array:
    return sharding.constrain(output.lm_head.logits(output.hidden[:, -1]), "bv")


def _laid(cache: Cache) -> Cache:
    """The cache with its rows and heads on the mesh."""

    def lay(keys):
        return jax.tree.map(lambda array: sharding.constrain(array, "bgsk"), keys)

    layers = tuple(layer.replace(keys=lay(layer.keys)) for layer in cache.layers)
    return cache.replace(layers=layers, memory=lay(cache.memory))


def _of_one_block(stack: jax.Array) -> NamedSharding | None:
    """The sharding of one block's array of a stack; None if the stack is not on a mesh."""
    found = getattr(stack, "sharding", None)
    return NamedSharding(found.mesh, PartitionSpec(*found.spec[1:])) if isinstance(found, NamedSharding) else None


@functools.partial(jax.jit, static_argnames=("dtype", "shardings"))
def _apart(blocks: Any, dtype: jnp.dtype, shardings: tuple[NamedSharding | None, ...]) -> tuple[Any, ...]:
    """The parameters of each block, with kernels in `dtype`; `shardings` are those of one block's leaves, in order."""

    def convert(path, array):  # What `Linear` does to its kernel at each call.
        return array.astype(dtype) if path[-1].key == "kernel" else array

    def lay(array, place):
        return array if place is None else jax.lax.with_sharding_constraint(array, place)

    def laid(block):
        leaves, structure = jax.tree.flatten(block)
        return structure.unflatten(map(lay, leaves, shardings))

    return tuple(map(laid, unstacked(jax.tree_util.tree_map_with_path(convert, blocks))))
