"""Chooses the next token of each batch row from its logits, by argmax or sampling."""

import jax
import jax.numpy as jnp

from jaxformer.decoding.settings import Decoding

NEVER = -jnp.inf
"""Logit (-inf) of a token that must not be chosen."""


def choose(logits: jax.Array, decoding: Decoding, key: jax.Array) -> jax.Array:
    """Chooses the next token of each batch row: the most likely one if the temperature is 0, otherwise a sampled one.

    Args:
      logits: logits after all logits processors, float32 [batch, vocab].
      decoding: decoding settings.
      key: random key for sampling.

    Returns:
      Token ids, int32 [batch].
    """
    if not decoding.temperature:
        return likeliest(logits)
    tokens = None
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        logits, tokens = jax.lax.top_k(logits, decoding.top_k)
    drawn = jax.random.categorical(key, apply_sampling_filters(logits, decoding)).astype(jnp.int32)
    return drawn if tokens is None else jnp.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]


def likeliest(logits: jax.Array) -> jax.Array:
    """Returns the argmax of each row of `logits` [batch, vocab], int32 [batch]. If several are equal, the lowest index.

    Uses two reductions instead of argmax, which is slow in XLA on CPU.
    """
    largest = logits.max(-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(logits >= largest, index, logits.shape[-1] - 1).min(-1)


def apply_sampling_filters(logits: jax.Array, decoding: Decoding) -> jax.Array:
    """Changes logits [batch, vocab] for sampling: divides them by the temperature, and sets the logits of excluded
    tokens to -inf.

    Applies top-p, min-p, typical, epsilon and eta sampling in this order. Each of them uses probabilities that are
    renormalized over the remaining tokens.
    """
    logits = logits / decoding.temperature
    if decoding.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered)
        likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.where(likelier < decoding.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    if decoding.min_p:
        least = logits.max(-1, keepdims=True) + jnp.log(decoding.min_p)
        logits = jnp.where(logits < least, NEVER, logits)
    if decoding.typical_p < 1:
        logits = _typical(logits, decoding.typical_p)
    if decoding.epsilon_cutoff:
        logits = _likelier_than(decoding.epsilon_cutoff, logits)
    if decoding.eta_cutoff:
        eta = decoding.eta_cutoff
        logits = _likelier_than(jnp.minimum(eta, eta**0.5 * jnp.exp(-_entropy(logits))), logits)
    return logits


def _typical(logits: jax.Array, mass: float) -> jax.Array:
    """Applies typical sampling to logits. Keeps the tokens whose surprisal (-log p) is closest to the entropy, until
    their total probability reaches `mass`, and sets the other logits to -inf.
    """
    surprise = -jax.nn.log_softmax(logits)
    distances = jnp.abs(surprise - _entropy(logits))
    distances, ordered = jax.lax.sort_key_val(distances, logits)
    count = (jnp.cumsum(jax.nn.softmax(ordered), axis=-1) < mass).sum(-1, keepdims=True)
    farthest = jnp.take_along_axis(distances, jnp.minimum(count, logits.shape[-1] - 1), axis=-1)
    return jnp.where(jnp.abs(surprise - _entropy(logits)) > farthest, NEVER, logits)


def _likelier_than(probability: jax.Array | float, logits: jax.Array) -> jax.Array:
    """Sets the logits of tokens whose probability is below `probability` to -inf, except for the most likely token."""
    unlikely = jax.nn.softmax(logits) < probability
    return jnp.where(unlikely & (logits < logits.max(-1, keepdims=True)), NEVER, logits)


def _entropy(logits: jax.Array) -> jax.Array:
    """Computes the entropy of the distribution that `logits` [..., vocab] define, in nats, [..., 1]."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.where(jnp.isneginf(logs), 0.0, jnp.exp(logs) * logs).sum(-1, keepdims=True)


def apply_repetition_penalty(scores: jax.Array, seen: jax.Array | None, penalty: float) -> jax.Array:
    """Applies the repetition penalty to next-token scores: divides positive scores of repeated tokens by it, and
    multiplies negative ones by it.

    Args:
      scores: logits or log-probabilities of the next token, [..., vocab].
      seen: whether each vocabulary entry occurred before, boolean [..., vocab]. If None, the scores are returned
        unchanged.
      penalty: repetition penalty. Values above 1 make repeated tokens less likely.
    """
    if seen is None:
        return scores
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
