"""From a row's logits to its next token."""

import jax
import jax.numpy as jnp

from jaxformer.decoding.settings import Decoding

NEVER = -jnp.inf
"""The logit of a token that cannot come."""


def choose(logits: jax.Array, decoding: Decoding, key: jax.Array) -> jax.Array:
    """The next tokens, int32 [b], of float32 logits [b, v]: the likeliest ones, or drawn."""
    if not decoding.temperature:
        return likeliest(logits)
    tokens = None
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        logits, tokens = jax.lax.top_k(logits, decoding.top_k)
    drawn = jax.random.categorical(key, warp(logits, decoding)).astype(jnp.int32)
    return drawn if tokens is None else jnp.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]


def likeliest(logits: jax.Array) -> jax.Array:
    """The first of the largest, int32 [b]; two plain reductions, where XLA on CPU has no quick argmax."""
    largest = logits.max(-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(logits >= largest, index, logits.shape[-1] - 1).min(-1)


def warp(logits: jax.Array, decoding: Decoding) -> jax.Array:
    """The logits that tokens are drawn by, [b, v]: temperature, then each cut in turn of what the one before left."""
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
    """The logits of the tokens whose surprise is nearest to the entropy, down to a probability of `mass` together."""
    surprise = -jax.nn.log_softmax(logits)
    distances = jnp.abs(surprise - _entropy(logits))
    distances, ordered = jax.lax.sort_key_val(distances, logits)
    count = (jnp.cumsum(jax.nn.softmax(ordered), axis=-1) < mass).sum(-1, keepdims=True)
    farthest = jnp.take_along_axis(distances, jnp.minimum(count, logits.shape[-1] - 1), axis=-1)
    return jnp.where(jnp.abs(surprise - _entropy(logits)) > farthest, NEVER, logits)


def _likelier_than(probability: jax.Array | float, logits: jax.Array) -> jax.Array:
    """The logits of the tokens that have at least this probability, and of the likeliest one."""
    unlikely = jax.nn.softmax(logits) < probability
    return jnp.where(unlikely & (logits < logits.max(-1, keepdims=True)), NEVER, logits)


def _entropy(logits: jax.Array) -> jax.Array:
    """The entropy of the next token in nats, [..., 1]."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.where(jnp.isneginf(logs), 0.0, jnp.exp(logs) * logs).sum(-1, keepdims=True)


def weaken(scores: jax.Array, seen: jax.Array | None, penalty: float) -> jax.Array:
    """Logits or log-probabilities [..., v] with those of tokens `seen`, boolean [..., v], brought down."""
    if seen is None:
        return scores
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
