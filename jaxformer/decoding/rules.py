"""Logits processors: they change the scores of the next token according to output length, repetitions and banned
tokens.

Their definitions and order are the same as in the Hugging Face transformers library. A setting with its default value
adds nothing to the compiled program, because its fields of `Rules` are None.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding.choosing import NEVER, weaken
from jaxformer.decoding.settings import Decoding, TimestampRules

NO_TOKEN = -1
"""Value of array entries that do not contain a token, such as the left padding of shorter prompts."""


@flax.struct.dataclass
class Rules:
    """Data that the logits processors need for a batch."""

    limits: jax.Array | np.ndarray
    """Maximum number of new tokens per row, integers [batch]. 0 for padding rows."""
    ends: jax.Array | np.ndarray
    """Ids of the tokens that end an output, a vector of integers."""
    least: jax.Array | np.ndarray | None = None
    """Minimum number of new tokens before an end token is allowed, integers [batch]. If None, there is no minimum."""
    given: jax.Array | np.ndarray | None = None
    """Last tokens before the output, integers [batch, tokens], left-padded with `NO_TOKEN`: the end of the prompt, or
    the decoder start tokens of an encoder–decoder. None if no processor needs them.
    """
    read: jax.Array | np.ndarray | None = None
    """Prompt tokens, integers [batch, length], left-padded with `NO_TOKEN`. None if no processor needs them."""
    alone: jax.Array | np.ndarray | None = None
    """Whether exactly one token comes before the output of each row, boolean [batch]. `forced_bos_token_id` only
    applies to such rows. None if no processor needs it.
    """
    pieces: int | None = flax.struct.field(pytree_node=False, default=None)
    """Vocabulary size of the tokenizer. Token ids from this number on are never generated. If None, all ids of the
    model are allowed.
    """

    @classmethod
    def of(
        cls,
        decoding: Decoding,
        prompts: Sequence[np.ndarray],
        limits: np.ndarray,
        ends: Sequence[int],
        followed: Sequence[np.ndarray] | None = None,
        pieces: int | None = None,
    ) -> "Rules":
        """Builds the data of the logits processors for a batch. There may be fewer prompts than rows; the remaining
        rows are padding.

        Args:
          decoding: Decoding settings.
          prompts: Prompt of each row, int32 [tokens].
          limits: Maximum number of new tokens per row, int32 [batch].
          ends: Ids of the tokens that end an output.
          followed: Tokens directly before the output of each row, int32 [tokens]: the decoder start tokens of an
            encoder–decoder. If None, the prompts.
          pieces: Vocabulary size of the tokenizer. Token ids from this number on are never generated. If None, all ids
            of the model are allowed.
        """
        followed = prompts if followed is None else followed
        stretch, read = decoding.no_repeat_ngram_size, decoding.encoder_no_repeat_ngram_size
        longest = max([stretch, read, *map(len, decoding.bad_words_ids)])
        lengths = np.zeros(len(limits), np.int32)
        lengths[: len(prompts)] = list(map(len, followed))
        least = (
            np.full_like(lengths, decoding.min_new_tokens) if decoding.min_new_tokens else decoding.min_length - lengths
        )
        reads = read or decoding.encoder_repetition_penalty != 1
        return cls(
            limits=limits.astype(np.int32),
            ends=np.array(ends, np.int32),
            least=least if len(ends) and (decoding.min_new_tokens or decoding.min_length) else None,
            given=_before(followed, len(limits), longest) if longest > 1 or stretch else None,
            read=_before(prompts, len(limits), read) if reads else None,
            alone=lengths == 1 if decoding.forced_bos_token_id is not None else None,
            pieces=pieces,
        )

    def repeated(self, times: int) -> "Rules":
        """Returns the data for a batch in which each row is repeated `times` times, once per hypothesis of a beam
        search.
        """
        return dataclasses.replace(jax.tree.map(lambda array: jnp.repeat(array, times, axis=0), self), ends=self.ends)

    def is_end(self, tokens: jax.Array) -> jax.Array:
        """Returns whether each of the tokens (integers [...]) is an end token, boolean [...]."""
        return (tokens[..., None] == self.ends).any(-1)

    def only_pieces(self, logits: jax.Array) -> jax.Array:
        """Sets the logits ([..., vocab]) of token ids that the tokenizer does not have to -inf, so that they are not
        generated.
        """
        return without_pieces(logits, self.pieces)


class History(NamedTuple):
    """All tokens before the next token of each row."""

    tokens: jax.Array
    """Prompt or start token, followed by the output, integers [batch, length]. `NO_TOKEN` before and after them."""
    stop: jax.Array
    """Index in `tokens` of the next token, scalar."""

    def last(self, size: int) -> jax.Array:
        """Returns the last `size` tokens of each row, integers [batch, size]."""
        return jax.lax.dynamic_slice_in_dim(self.tokens, self.stop - size, size, axis=1)


def without_pieces(logits: jax.Array, pieces: int | None) -> jax.Array:
    """Sets the logits ([..., vocab]) of token ids from `pieces` on to -inf, so that they are not generated. `pieces` is
    the vocabulary size of the tokenizer. If it is None, the logits are unchanged.
    """
    if pieces is None or pieces >= logits.shape[-1]:
        return logits
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < pieces, logits, NEVER)


def apply(
    scores: jax.Array, seen: jax.Array | None, output: jax.Array, count: jax.Array, rules: Rules, decoding: Decoding
) -> jax.Array:
    """Applies all logits processors to the scores of the next token.

    Args:
      scores: Logits or log-probabilities, float32 [batch, vocab].
      seen: Whether each token occurred before, boolean [batch, vocab]. None if `repetition_penalty` is 1.
      output: New tokens so far, integers [batch, maximum length]; the first `count` are valid.
      count: Number of new tokens so far, scalar.
      rules: Data that the processors need.
      decoding: Decoding settings.
    """
    vocab = scores.shape[-1]
    if decoding.encoder_repetition_penalty != 1 and rules.read is not None:
        scores = weaken(scores, _mentioned(rules.read, vocab), 1 / decoding.encoder_repetition_penalty)
    scores = weaken(scores, seen, decoding.repetition_penalty)
    history = None
    if rules.given is not None:
        output = jnp.where(jnp.arange(output.shape[1]) < count, output, NO_TOKEN)
        history = History(jnp.concatenate([rules.given, output], axis=1), rules.given.shape[1] + count)

    if (size := decoding.no_repeat_ngram_size) and history is not None:
        scores = jnp.where(_repeats(history.last(size - 1), history.tokens, vocab), NEVER, scores)
    if (size := decoding.encoder_no_repeat_ngram_size) and rules.read is not None:
        recent = jnp.zeros((len(scores), 0), jnp.int32) if history is None else history.last(size - 1)
        scores = jnp.where(_repeats(recent, rules.read, vocab), NEVER, scores)
    for length, words in itertools.groupby(sorted(decoding.bad_words_ids, key=len), key=len):
        words = np.array(list(words))
        if length == 1:
            scores = scores.at[:, words[:, 0]].set(NEVER)
        elif history is not None:
            completed = (history.last(length - 1)[:, None] == words[:, :-1]).all(-1)
            scores = scores.at[:, words[:, -1]].min(jnp.where(completed, NEVER, jnp.inf))
    scores = _apply_lengths(scores, count, rules, decoding)
    if decoding.timestamps is not None:
        scores = _apply_timestamps(scores, output, count, rules, decoding.timestamps)
    return scores


def _apply_lengths(scores: jax.Array, count: jax.Array, rules: Rules, decoding: Decoding) -> jax.Array:
    """Applies the processors that depend on the number of new tokens, followed by those that suppress tokens."""
    if rules.least is not None:
        early = (count < rules.least)[:, None]
        scores = jnp.where(early & _among(rules.ends, scores), NEVER, scores)
    first = count == 0
    if decoding.forced_bos_token_id is not None and rules.alone is not None:
        forced = _among(np.array([decoding.forced_bos_token_id]), scores)
        scores = jnp.where((first & rules.alone)[:, None], jnp.where(forced, 0.0, NEVER), scores)
        first = count == rules.alone
    if decoding.forced_eos_token_ids:
        forced = _among(np.array(decoding.forced_eos_token_ids), scores)
        scores = jnp.where((count == rules.limits - 1)[:, None], jnp.where(forced, 0.0, NEVER), scores)
    if decoding.exponential_decay_length_penalty is not None and rules.ends.size:
        start, factor = decoding.exponential_decay_length_penalty
        power = factor ** jnp.maximum(count - start, 0).astype(jnp.float32)
        grown = _among(rules.ends, scores) & jnp.isfinite(scores)
        scores = jnp.where(grown, scores + jnp.abs(scores) * (power - 1), scores)
    if decoding.suppress_tokens:
        scores = scores.at[:, np.array(decoding.suppress_tokens)].set(NEVER)
    if decoding.begin_suppress_tokens:
        banned = _among(np.array(decoding.begin_suppress_tokens), scores)
        scores = jnp.where(jnp.reshape(first, (-1, 1)) & banned, NEVER, scores)
    return scores


def _apply_timestamps(
    scores: jax.Array, output: jax.Array, count: jax.Array, rules: Rules, timestamps: TimestampRules
) -> jax.Array:
    """Applies the rules for timestamp tokens. See `TimestampRules` and `apply`."""
    start, ids = timestamps.first, jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    is_time = ids >= start
    times = jnp.where((output >= start) & (jnp.arange(output.shape[1]) < count), output, -1)
    last = jax.lax.dynamic_index_in_dim(times, jnp.maximum(count - 1, 0), 1)
    before = jax.lax.dynamic_index_in_dim(times, jnp.maximum(count - 2, 0), 1)
    after_time = (count > 0) & (last >= start)
    after_pair = after_time & ((count < 2) | (before >= start))
    # A pair ends one segment and starts the next. After it comes text; after its first timestamp, its second one.
    scores = jnp.where(after_pair & is_time, NEVER, scores)
    scores = jnp.where(after_time & ~after_pair & (ids < rules.ends.min()), NEVER, scores)
    latest = times.max(1, keepdims=True)
    least = jnp.where(after_time & ~after_pair, latest, latest + 1)
    scores = jnp.where(is_time & (latest >= start) & (ids < least), NEVER, scores)
    scores = jnp.where((ids == start - 1) | ((count == 0) & ~is_time), NEVER, scores)
    if timestamps.latest_start is not None:
        scores = jnp.where((count == 0) & (ids > start + timestamps.latest_start), NEVER, scores)
    together = jax.nn.logsumexp(jnp.where(is_time, scores, NEVER), axis=-1, keepdims=True)
    text = jnp.where(is_time, NEVER, scores).max(-1, keepdims=True)
    return jnp.where(~is_time & (together > text), NEVER, scores)


def _before(texts: Sequence[np.ndarray], rows: int, least: int = 1) -> np.ndarray:
    """Left-pads token sequences with `NO_TOKEN` to a common length, int32 [rows, length]. The length is at least
    `least` and a power of 2, so that few programs are compiled.
    """
    size = 16
    while size < max([least, *map(len, texts)]):
        size *= 2
    tokens = np.full((rows, size), NO_TOKEN, np.int32)
    for row, text in enumerate(texts):
        tokens[row, size - len(text) :] = text
    return tokens


def _among(ids: jax.Array | np.ndarray, scores: jax.Array) -> jax.Array:
    """Returns which tokens of the vocabulary are in `ids`, boolean [vocab]. Only the last axis of `scores`
    ([..., vocab]) is used, as the vocabulary size.
    """
    return jnp.zeros(scores.shape[-1], bool).at[ids].set(True)


def _mentioned(text: jax.Array | np.ndarray, vocab: int) -> jax.Array:
    """Returns which tokens of the vocabulary occur in each row of a text, boolean [batch, vocab]. `text` is integers
    [batch, length].
    """
    places = jnp.where(text == NO_TOKEN, vocab, text)
    return jnp.zeros((len(text), vocab), bool).at[jnp.arange(len(text))[:, None], places].set(True, mode="drop")


def _repeats(last: jax.Array, text: jax.Array | np.ndarray, vocab: int) -> jax.Array:
    """Finds the next tokens that would repeat an n-gram of the text.

    Args:
      last: Last n − 1 tokens of each row, integers [batch, n − 1].
      text: Tokens in which the n-gram may not occur already, integers [batch, length].
      vocab: Vocabulary size.

    Returns:
      Whether each token of the vocabulary would repeat an n-gram, boolean [batch, vocab].
    """
    size = last.shape[1]
    starts = text.shape[1] - size
    same = (last != NO_TOKEN).all(-1)[:, None] & (text[:, size:] != NO_TOKEN)
    for number in range(size):
        same &= text[:, number : number + starts] == last[:, number : number + 1]
    return _mentioned(jnp.where(same, text[:, size:], NO_TOKEN), vocab)
