"""Loop for greedy decoding and sampling, which runs on the device and updates its state in place."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.decoding import rules, steps
from jaxformer.decoding.choosing import choose
from jaxformer.decoding.rules import Rules
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.steps import Prompts
from jaxformer.layers.cache import Cache
from jaxformer.models.base import Model


@flax.struct.dataclass
class Progress:
    """State of the decoding loop of a batch, which is carried from step to step."""

    count: jax.Array
    """Number of decoding steps so far, scalar. It is the number of new tokens in each row that has not ended."""
    tokens: jax.Array
    """New token ids of each row, integers [batch, maximum length]. Only the first `lengths` are valid."""
    lengths: jax.Array
    """Number of new tokens of each row, including the EOS token, integers [batch]."""
    last: jax.Array
    """Newest token of each row, which the model reads in the next step, integers [batch]."""
    position_ids: jax.Array
    """Position id of the token `last` of each row, integers [batch]."""
    cache: Cache
    """Key-value cache of the tokens before `last`."""
    ended: jax.Array
    """Whether each row has ended, because of an EOS token or its maximum length, boolean [batch]."""
    seen: jax.Array | None
    """Whether each vocabulary entry occurs in the prompt or the output of a row, boolean [batch, vocab]. None if
    `repetition_penalty` is 1, which does not need it.
    """
    rules: Rules
    """Inputs of the logits processors, such as maximum lengths and EOS tokens."""
    key: jax.Array
    """Random key for sampling."""
    totals: jax.Array | None = None
    """Sum of the log-probabilities of the new tokens of each row, after all logits processors, float32 [batch]. None if
    `Prompts.scored` is False.
    """


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def begin(model: Model, decoding: Decoding, params: Any, prompts: Prompts, room: int, key: jax.Array) -> Progress:
    """Starts the decoding of a batch: runs the prefill of the prompts, and chooses the first new token of each row.

    Args:
      model: generative model.
      decoding: decoding settings.
      params: parameters of the model.
      prompts: padded prompts of the batch.
      room: maximum number of new tokens.
      key: random key for sampling.
    """
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
        totals=jnp.zeros(rows) if prompts.scored else None,
    )
    return _add(progress, ahead.logits, decoding)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(model: Model, decoding: Decoding, params: Any, progress: Progress, until: jax.Array) -> Progress:
    """Continues the decoding of a batch until each row has ended or has `until` new tokens in total."""

    def unfinished(progress):
        return (progress.count < until) & ~progress.ended.all()

    def body(progress):
        ahead = steps.step(model, params, progress.last, progress.position_ids, progress.cache)
        return _add(
            dataclasses.replace(progress, position_ids=ahead.position_ids, cache=ahead.cache), ahead.logits, decoding
        )

    return jax.lax.while_loop(unfinished, body, progress)


def _add(progress: Progress, logits: jax.Array, decoding: Decoding) -> Progress:
    """Chooses the next token of each row from logits [batch, vocab], and appends it to the output."""
    key = jax.random.fold_in(progress.key, progress.count)
    logits = progress.rules.mask_unused_ids(logits)
    logits = rules.apply(logits, progress.seen, progress.tokens, progress.count, progress.rules, decoding)
    token = choose(logits, decoding, key)
    totals = progress.totals
    if totals is not None:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        totals = jnp.where(progress.ended, totals, totals + chosen)
    lengths = progress.lengths + ~progress.ended
    seen = progress.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return dataclasses.replace(
        progress,
        count=progress.count + 1,
        tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, token[:, None], progress.count, axis=1),
        lengths=lengths,
        last=token,
        ended=progress.ended | progress.rules.is_end(token) | (lengths >= progress.rules.limits),
        seen=seen,
        totals=totals,
    )


def first_seen(model: Model, decoding: Decoding, prompts: Prompts) -> jax.Array | None:
    """Returns whether each vocabulary entry occurs in the prompt of each row, boolean [batch, vocab]. Returns None if
    `repetition_penalty` is 1, which does not need it.
    """
    if decoding.repetition_penalty == 1:
        return None
    rows = jnp.arange(len(prompts.tokens))[:, None]
    seen = jnp.zeros((len(rows), model.vocab), bool)
    return seen.at[rows, prompts.tokens].max(prompts.segments > 0)
