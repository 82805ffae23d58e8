"""Beam search: at every step, extends the k best hypotheses (partial outputs) of each batch row (Graves 2012; Wu et al.
2016).
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.decoding import rules, steps
from jaxformer.decoding.choosing import NEVER
from jaxformer.decoding.loops import first_seen
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.steps import Prompts
from jaxformer.layers.cache import Cache
from jaxformer.models.base import Model


@flax.struct.dataclass
class Hypotheses:
    """A fixed number of partial or complete outputs (hypotheses) of each batch row, sorted from best to worst."""

    scores: jax.Array
    """Log-probability of each hypothesis, float32 [batch, beams]. For a complete hypothesis, it is divided by length **
    `length_penalty`. -inf marks an unused slot.
    """
    tokens: jax.Array
    """New token ids of each hypothesis, integers [batch, beams, maximum length]. Only the first `lengths` are valid."""
    lengths: jax.Array
    """Number of new tokens of each hypothesis, integers [batch, beams]."""

    @classmethod
    def none(cls, rows: int, count: int, room: int) -> "Hypotheses":
        """Creates `count` unused slots for hypotheses in each of `rows` batch rows, each of up to `room` tokens."""
        zeros = jnp.zeros((rows, count), jnp.int32)
        return cls(jnp.full(zeros.shape, NEVER), jnp.zeros((*zeros.shape, room), jnp.int32), zeros)

    def best(self, scores: jax.Array, count: int) -> tuple["Hypotheses", jax.Array]:
        """Selects the `count` hypotheses of each batch row with the highest scores, in order.

        Args:
          scores: new scores of all hypotheses, [batch, beams], which replace their previous scores.
          count: number of hypotheses to select.

        Returns:
          The selected hypotheses, and their indices along the beam axis, integers [batch, count].
        """
        scores, index = jax.lax.top_k(scores, count)
        rows = jnp.arange(len(index))[:, None]
        return Hypotheses(scores, self.tokens[rows, index], self.lengths[rows, index]), index


@flax.struct.dataclass
class Search:
    """State of a beam search, which is carried from step to step."""

    count: jax.Array
    """Number of new tokens in each hypothesis of `live`, scalar. It is the same for all hypotheses."""
    live: Hypotheses
    """Partial hypotheses, which are extended by a token in the next step."""
    ended: Hypotheses
    """Complete hypotheses: those that ended with an EOS token or reached the maximum length."""
    open: jax.Array
    """Whether the search continues in each batch row, boolean [batch]. See `Decoding.early_stopping`."""
    position_ids: jax.Array
    """Position ids at which the next step reads the last token of each hypothesis of `live`, integers [batch · beams].
    """
    cache: Cache
    """Key-value cache with one batch row per hypothesis of `live`."""
    seen: jax.Array | None
    """Whether each vocabulary entry occurs in the prompt or in the hypothesis, boolean [batch, beams, vocab]. None if
    `repetition_penalty` is 1, which does not need it.
    """


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def search(model: Model, decoding: Decoding, params: Any, prompts: Prompts, room: int) -> Hypotheses:
    """Runs a beam search, and returns the best complete hypotheses of each batch row.

    Args:
      model: generative model.
      decoding: decoding settings.
      params: parameters of the model.
      prompts: padded prompts of the batch.
      room: maximum number of new tokens.
    """
    rows, beams = len(prompts.tokens), decoding.num_beams
    ahead = steps.start(model, params, prompts, room)
    repeat = functools.partial(jnp.repeat, repeats=beams, axis=0)
    seen = first_seen(model, decoding, prompts)
    live = Hypotheses.none(rows, beams, room)
    state = Search(
        count=jnp.zeros((), jnp.int32),
        # All hypotheses are equal at first: only one of them is considered.
        live=dataclasses.replace(live, scores=live.scores.at[:, 0].set(0)),
        ended=live,
        open=jnp.asarray(prompts.rules.limits) > 0,
        position_ids=repeat(ahead.position_ids),
        cache=jax.tree.map(lambda array: repeat(array) if array.ndim else array, ahead.cache),
        seen=None if seen is None else jnp.repeat(seen[:, None], beams, axis=1),
    )
    state = _extend(state, repeat(ahead.logits), decoding, prompts)

    def body(state):
        last = jax.lax.dynamic_slice_in_dim(state.live.tokens, state.count - 1, 1, axis=2)
        ahead = steps.step(model, params, last.reshape(-1), state.position_ids, state.cache)
        state = dataclasses.replace(state, position_ids=ahead.position_ids, cache=ahead.cache)
        return _extend(state, ahead.logits, decoding, prompts)

    return jax.lax.while_loop(lambda state: (state.count < room) & state.open.any(), body, state).ended


def _extend(state: Search, logits: jax.Array, decoding: Decoding, prompts: Prompts) -> Search:
    """Runs one step of the beam search: extends each partial hypothesis (`state.live`) by every token of the
    vocabulary, and keeps the best extensions.

    Extensions that end with an EOS token or reach the maximum length are moved to `state.ended`. `logits` are the
    next-token logits of the partial hypotheses, [batch · beams, vocab].
    """
    rows, beams = state.live.scores.shape
    count = state.count + 1
    scores = _scores(state, logits, decoding, prompts).reshape(rows, beams, -1)
    vocab = scores.shape[-1]
    # As many extensions of each hypothesis may end as there are end tokens; one more stays live.
    kept = min(max(2, 1 + prompts.rules.ends.size), vocab) * beams
    totals, index = jax.lax.top_k((state.live.scores[..., None] + scores).reshape(rows, -1), kept)
    parents, tokens = index // vocab, index % vocab
    extended = state.live.tokens[jnp.arange(rows)[:, None], parents]
    extended = jax.lax.dynamic_update_slice_in_dim(extended, tokens[..., None], state.count, axis=2)
    extended = Hypotheses(totals, extended, jnp.full_like(parents, count))
    ends = prompts.rules.is_end(tokens) | (count >= prompts.rules.limits)[:, None]
    ended = _with_ended(state, extended, ends, count, decoding)
    live, chosen = extended.best(jnp.where(ends, NEVER, totals), beams)
    parents = jnp.take_along_axis(parents, chosen, axis=1)
    cache = state.cache
    places = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
    return dataclasses.replace(
        state,
        count=count,
        live=live,
        ended=ended,
        open=state.open & _may_improve(live, ended, count, decoding, prompts),
        # The encoder memory is not reordered: all hypotheses of a row share it.
        cache=dataclasses.replace(cache, layers=jax.tree.map(lambda array: array[places], cache.layers)),
        seen=_seen(state.seen, parents, jnp.take_along_axis(tokens, chosen, axis=1)),
    )


def _scores(state: Search, logits: jax.Array, decoding: Decoding, prompts: Prompts) -> jax.Array:
    """Computes the next-token log-probabilities of each partial hypothesis, changed by all logits processors, [batch ·
    beams, vocab].
    """
    beams = decoding.num_beams
    scores = jax.nn.log_softmax(prompts.rules.mask_unused_ids(logits))
    seen = None if state.seen is None else state.seen.reshape(scores.shape)
    output = state.live.tokens.reshape(len(scores), -1)
    scores = rules.apply(scores, seen, output, state.count, prompts.rules.repeated(beams), decoding)
    return jax.nn.log_softmax(scores) if decoding.renormalize_logits else scores


def _with_ended(state: Search, extended: Hypotheses, ends: jax.Array, count, decoding: Decoding) -> Hypotheses:
    """Adds the hypotheses that end in this step to those that ended before. Returns the best `num_beams` of them for
    each batch row.

    Args:
      state: state of the search before this step.
      extended: hypotheses after this step, best first.
      ends: whether each hypothesis of `extended` ends in this step, boolean [batch, hypotheses]. Ignored for hypotheses
        that are not among the best `num_beams`.
      count: number of tokens in each hypothesis of `extended`.
      decoding: decoding settings.
    """
    beams = decoding.num_beams
    now = ends & (jnp.arange(ends.shape[1]) < beams) & state.open[:, None]
    scores = jnp.where(now, extended.scores / count.astype(jnp.float32) ** decoding.length_penalty, NEVER)
    merged = jax.tree.map(
        lambda *both: jnp.concatenate(both, axis=1), state.ended, dataclasses.replace(extended, scores=scores)
    )
    return merged.best(merged.scores, beams)[0]


def _may_improve(live: Hypotheses, ended: Hypotheses, count, decoding: Decoding, prompts: Prompts) -> jax.Array:
    """Returns whether the search of each batch row must continue, because a partial hypothesis (`live`) may still
    become better than the worst complete one (`ended`). Boolean [batch]. `decoding.early_stopping` selects the
    criterion.
    """
    worst = ended.scores.min(-1)
    lengths = count
    if decoding.early_stopping is True:
        return (worst == NEVER) & (live.scores[:, 0] > NEVER)
    if decoding.early_stopping == "never" and decoding.length_penalty > 0:
        lengths = prompts.rules.limits
    return live.scores[:, 0] / jnp.asarray(lengths, jnp.float32) ** decoding.length_penalty > worst


def _seen(seen: jax.Array | None, parents: jax.Array, tokens: jax.Array) -> jax.Array | None:
    if seen is None:
        return None
    rows, beams = jnp.arange(len(parents))[:, None], jnp.arange(parents.shape[1])
    return seen[rows, parents].at[rows, beams, tokens].set(True)
