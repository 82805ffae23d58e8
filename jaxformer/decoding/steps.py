"""The steps of decoding: read the prompts, then one token a row at a time.

A model generates through its contract (`Model.encode_prompt` and `Model.decode`), whatever its prompts are made of.
Tokens of several lengths are padded on the left, so that all rows write to the same slot of the cache.
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
    """The prompts of a batch of rows."""

    tokens: jax.Array
    """Integers [b, k], padded on the left: what the generated tokens follow. Of a decoder alone that is the prompt; of
    an encoder–decoder a start token, or a forced prefix such as a language and a task."""
    segments: jax.Array
    """Integers [b, k]: 1, and 0 where there is padding."""
    rules: Rules
    """The rules for new tokens."""
    inputs: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """Inputs of the encoder, by the names of `Model.encode_prompt`: arrays [b, ...]; none without an encoder."""
    prefix: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether `tokens` see each other both ways, where the model is a prefix language model."""


class Next(NamedTuple):
    """The result of a step."""

    logits: jax.Array
    """float32 [b, v]: of the next token of each row."""
    position_ids: jax.Array
    """Integers [b]: the position of the next token."""
    cache: Cache
    """Keys and values of all tokens before it."""


def ready(model: Model, params: Any) -> Any:
    """Prepares parameters for decoding: the blocks one by one, with kernels in the compute dtype.

    Inside a loop, each step would slice and convert them again.
    """
    name, stack = list(model.stacks().items())[-1]
    if isinstance(params[name]["blocks"], tuple):
        return params
    blocks = params[name]["blocks"]
    shardings = tuple(map(_of_one_block, jax.tree.leaves(blocks)))
    blocks = _apart(blocks, dtype=compute_dtype(stack.dtype), shardings=shardings)
    return {**params, name: {**params[name], "blocks": blocks}}


def start(model: Model, params: Any, prompts: Prompts, room: int) -> Next:
    """Reads the prompts.

    Args:
      model: a generative model.
      params: its parameters, perhaps `ready`.
      prompts: the prompts.
      room: slots for new tokens.
    """
    tokens, segments = (sharding.constrain(array, "bt") for array in (prompts.tokens, prompts.segments))
    rows, length = tokens.shape
    position_ids = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    cache = model.new_cache(rows, length).replace(segments=segments)
    hidden = None
    if prompts.inputs:
        inputs = {name: _by_rows(array) for name, array in prompts.inputs.items()}
        memory = model.apply({"params": params}, **inputs, method="encode_prompt")
        hidden, cache = memory.hidden, cache.replace(memory_segments=memory.segments)
    prefix = segments > 0 if prompts.prefix else None
    output = _decode(model, params, tokens, position_ids, _laid(cache), memory=hidden, prefix=prefix)
    cache = output.cache.room_for(room)
    cache = cache.replace(segments=cache.segments.at[:, length:].set(1))
    return Next(_last(output), position_ids[:, -1] + 1, _laid(cache))


def step(model: Model, params: Any, tokens: jax.Array, position_ids: jax.Array, cache: Cache) -> Next:
    """Runs one decoding step for tokens [b] at positions [b]."""
    places = jnp.minimum(position_ids, model.max_length - 1)  # A row that has ended keeps its position.
    output = _decode(model, params, tokens[:, None], places[:, None], cache)
    return Next(_last(output), position_ids + 1, output.cache)


def _decode(model: Model, params: Any, *arrays: Any, **options: Any) -> Any:
    return model.apply({"params": params}, *arrays, **options, method="decode")


def _by_rows(array: jax.Array) -> jax.Array:
    return sharding.constrain(array, "b" + "_" * (array.ndim - 1))


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
