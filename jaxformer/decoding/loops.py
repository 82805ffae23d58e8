"""Token after token: one loop on the device, in which caches and tokens are updated in place."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.decoding import rules, steps
from jaxformer.decoding.choosing import choose
from jaxformer.decoding.rules import Rules
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.steps import Prompts
from jaxformer.layers.cache import Cache


@flax.struct.dataclass
class Progress:
    """Rows on their way."""

    count: jax.Array
    """Scalar: tokens so far in the rows that have not ended."""
    tokens: jax.Array
    """Integers [b, n]: the new tokens; row r has `lengths[r]` of them."""
    lengths: jax.Array
    """Integers [b]: new tokens, the end token among them."""
    last: jax.Array
    """Integers [b]: the token that the model has not seen yet."""
    position_ids: jax.Array
    """Integers [b]: its position."""
    cache: Cache
    """Keys and values of the tokens before it."""
    ended: jax.Array
    """Boolean [b]."""
    seen: jax.Array | None
    """Boolean [b, v]: tokens that were there before, where a penalty asks for it."""
    rules: Rules
    """As in `Prompts`."""
    key: jax.Array
    """For draws."""


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def begin(model: nn.Module, decoding: Decoding, params: Any, prompts: Prompts, room: int, key: jax.Array) -> Progress:
    """Reads the prompts and chooses the first token of each row; `room` is the most tokens that there will be."""
    ahead = steps.start(model, params, prompts, room)
    rows = len(prompts.tokens)
    zeros = jnp.zeros(rows, jnp.int32)
    progress = Progress(
        count=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((rows, room), jnp.int32),
        lengths=zeros,
        last=zeros,
        position_ids=ahead.position_ids,
        cache=ahead.cache,
        ended=prompts.rules.limits == 0,
        seen=first_seen(model, decoding, prompts),
        rules=prompts.rules,
        key=key,
    )
    return _add(progress, ahead.logits, decoding)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(model: nn.Module, decoding: Decoding, params: Any, progress: Progress, until: jax.Array) -> Progress:
    """Generates until each row has ended or has `until` new tokens."""

    def unfinished(progress):
        return (progress.count < until) & ~progress.ended.all()

    def body(progress):
        ahead = steps.step(model, params, progress.last, progress.position_ids, progress.cache)
        return _add(progress.replace(position_ids=ahead.position_ids, cache=ahead.cache), ahead.logits, decoding)

    return jax.lax.while_loop(unfinished, body, progress)


def _add(progress: Progress, logits: jax.Array, decoding: Decoding) -> Progress:
    """Chooses one more token for each row."""
    key = jax.random.fold_in(progress.key, progress.count)
    logits = progress.rules.only_pieces(logits)
    logits = rules.apply(logits, progress.seen, progress.tokens, progress.count, progress.rules, decoding)
    token = choose(logits, decoding, key)
    lengths = progress.lengths + ~progress.ended
    seen = progress.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return progress.replace(
        count=progress.count + 1,
        tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, token[:, None], progress.count, axis=1),
        lengths=lengths,
        last=token,
        ended=progress.ended | progress.rules.is_end(token) | (lengths >= progress.rules.limits),
        seen=seen,
    )


def first_seen(model: nn.Module, decoding: Decoding, prompts: Prompts) -> jax.Array | None:
    """Boolean [b, v]: the tokens that the output follows, where a penalty needs them."""
    if decoding.repetition_penalty == 1:
        return None
    rows = jnp.arange(len(prompts.tokens))[:, None]
    seen = jnp.zeros((len(rows), model.vocab), bool)
    return seen.at[rows, prompts.tokens].max(prompts.segments > 0)
