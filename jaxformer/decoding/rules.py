"""Logits processors, which change next-token scores to enforce output lengths, discourage repetitions, and ban tokens.

Their definitions and their order are those of the Hugging Face transformers library. Processors that the decoding
settings do not enable add nothing to the compiled program, because their fields in `Rules` are None.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding.choosing import NEVER, apply_repetition_penalty
from jaxformer.decoding.settings import Decoding, TimestampRules

NO_TOKEN = -1
"""Value that marks unused entries of token arrays, such as the left padding of shorter prompts."""


@flax.struct.dataclass
class Rules:
    """Inputs of the logits processors for a batch, such as maximum lengths, EOS tokens and prompts."""

    limits: jax.Array | np.ndarray
    """Maximum number of new tokens of each row, integers [batch]. 0 for rows that only pad the batch."""
    ends: jax.Array | np.ndarray
    """Ids of the EOS tokens, which end an output, integers [tokens]."""
    min_new_tokens: jax.Array | np.ndarray | None = None
    """Minimum number of new tokens of each row before an EOS token may be generated, integers [batch]. None for no
    minimum.
    """
    preceding_tokens: jax.Array | np.ndarray | None = None
    """Token ids that directly precede the output of each row, integers [batch, length], left-padded with `NO_TOKEN`:
    the prompt of a decoder, or the decoder start tokens of an encoder–decoder. None if no enabled processor needs them.
    """
    prompt_tokens: jax.Array | np.ndarray | None = None
    """Token ids of each row's prompt, which for an encoder–decoder is the encoder input, integers [batch, length],
    left-padded with `NO_TOKEN`. None if no enabled processor needs them.
    """
    after_single_token: jax.Array | np.ndarray | None = None
    """Whether exactly one token precedes the output of each row, boolean [batch]. `forced_bos_token_id` applies only to
    these rows. None if that setting is None.
    """
    pieces: int | None = flax.struct.field(pytree_node=False, default=None)
    """Vocabulary size of the tokenizer, if the model has more ids. Token ids from this number on are never generated.
    If None, all ids may be generated.
    """

    @classmethod
    def of(
        cls,
        decoding: Decoding,
        prompts: Sequence[np.ndarray],
        limits: np.ndarray,
        ends: Sequence[int],
        preceding: Sequence[np.ndarray] | None = None,
        pieces: int | None = None,
    ) -> "Rules":
        """Creates the inputs of the logits processors for a batch. If there are fewer prompts than rows, the remaining
        rows only pad the batch.

        Args:
          decoding: decoding settings.
          prompts: token ids of each prompt, int32 [tokens].
          limits: maximum number of new tokens of each row, int32 [batch].
          ends: ids of the EOS tokens.
          preceding: token ids that directly precede the output of each row, int32 [tokens], such as the decoder start
            tokens of an encoder–decoder. If None, as for a decoder, the prompts.
          pieces: vocabulary size of the tokenizer, if the model has more ids. Token ids from this number on are never
            generated. If None, all ids may be generated.
        """
        preceding = prompts if preceding is None else preceding
        ngram, encoder_ngram = decoding.no_repeat_ngram_size, decoding.encoder_no_repeat_ngram_size
        longest = max([ngram, encoder_ngram, *map(len, decoding.bad_words_ids)])
        lengths = np.zeros(len(limits), np.int32)
        lengths[: len(prompts)] = list(map(len, preceding))
        least = (
            np.full_like(lengths, decoding.min_new_tokens) if decoding.min_new_tokens else decoding.min_length - lengths
        )
        reads = encoder_ngram or decoding.encoder_repetition_penalty != 1
        return cls(
            limits=limits.astype(np.int32),
            ends=np.array(ends, np.int32),
            min_new_tokens=least if len(ends) and (decoding.min_new_tokens or decoding.min_length) else None,
            preceding_tokens=_before(preceding, len(limits), longest) if longest > 1 or ngram else None,
            prompt_tokens=_before(prompts, len(limits), encoder_ngram) if reads else None,
            after_single_token=lengths == 1 if decoding.forced_bos_token_id is not None else None,
            pieces=pieces,
        )

    def repeated(self, times: int) -> "Rules":
        """Repeats each row `times` times, for a beam search, in which each hypothesis has its own batch row."""
        return dataclasses.replace(jax.tree.map(lambda array: jnp.repeat(array, times, axis=0), self), ends=self.ends)

    def is_end(self, tokens: jax.Array) -> jax.Array:
        """Returns whether each token is an EOS token. `tokens` are integers of any shape, and the result is boolean of
        the same shape.
        """
        return (tokens[..., None] == self.ends).any(-1)

    def mask_unused_ids(self, logits: jax.Array) -> jax.Array:
        """Sets the logits ([..., vocab]) of token ids that are not in the tokenizer's vocabulary to -inf."""
        return without_pieces(logits, self.pieces)


class History(NamedTuple):
    """All tokens of each row before the next one: those that precede the output, and the output so far."""

    tokens: jax.Array
    """Token ids, integers [batch, length]: `Rules.preceding_tokens`, followed by the output so far. Unused
    entries before and after them are `NO_TOKEN`.
    """
    stop: jax.Array
    """Index in `tokens` at which the next token will be, scalar."""

    def last(self, size: int) -> jax.Array:
        """Returns the newest `size` tokens of each row, integers [batch, size]."""
        return jax.lax.dynamic_slice_in_dim(self.tokens, self.stop - size, size, axis=1)


def without_pieces(logits: jax.Array, pieces: int | None) -> jax.Array:
    """Sets the logits ([..., vocab]) of token ids from `pieces` on to -inf, so that they are not generated. `pieces` is
    the vocabulary size of the tokenizer. If None, the logits are returned unchanged.
    """
    if pieces is None or pieces >= logits.shape[-1]:
        return logits
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < pieces, logits, NEVER)


def apply(
    scores: jax.Array, seen: jax.Array | None, output: jax.Array, count: jax.Array, rules: Rules, decoding: Decoding
) -> jax.Array:
    """Applies all enabled logits processors to the scores of the next token, and returns the new scores, float32
    [batch, vocab].

    Args:
      scores: logits or log-probabilities, float32 [batch, vocab].
      seen: whether each vocabulary entry occurred before, boolean [batch, vocab]. None if `repetition_penalty` is 1.
      output: new tokens, integers [batch, maximum length]. Only the first `count` are valid.
      count: number of new tokens so far, scalar.
      rules: inputs of the processors.
      decoding: decoding settings.
    """
    vocab = scores.shape[-1]
    if decoding.encoder_repetition_penalty != 1 and rules.prompt_tokens is not None:
        mentioned = _mentioned(rules.prompt_tokens, vocab)
        scores = apply_repetition_penalty(scores, mentioned, 1 / decoding.encoder_repetition_penalty)
    scores = apply_repetition_penalty(scores, seen, decoding.repetition_penalty)
    history = None
    if rules.preceding_tokens is not None:
        output = jnp.where(jnp.arange(output.shape[1]) < count, output, NO_TOKEN)
        tokens = jnp.concatenate([rules.preceding_tokens, output], axis=1)
        history = History(tokens, rules.preceding_tokens.shape[1] + count)

    if (size := decoding.no_repeat_ngram_size) and history is not None:
        scores = jnp.where(_repeats(history.last(size - 1), history.tokens, vocab), NEVER, scores)
    if (size := decoding.encoder_no_repeat_ngram_size) and rules.prompt_tokens is not None:
        recent = jnp.zeros((len(scores), 0), jnp.int32) if history is None else history.last(size - 1)
        scores = jnp.where(_repeats(recent, rules.prompt_tokens, vocab), NEVER, scores)
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
    """Applies the logits processors that depend on the number of new tokens (`count`), and then those that suppress
    tokens. Returns the new scores.
    """
    if rules.min_new_tokens is not None:
        early = (count < rules.min_new_tokens)[:, None]
        scores = jnp.where(early & _among(rules.ends, scores), NEVER, scores)
    first = count == 0
    if decoding.forced_bos_token_id is not None and rules.after_single_token is not None:
        forced = _among(np.array([decoding.forced_bos_token_id]), scores)
        scores = jnp.where((first & rules.after_single_token)[:, None], jnp.where(forced, 0.0, NEVER), scores)
        first = count == rules.after_single_token
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
    """Applies the logits processor for timestamp tokens, which `TimestampRules` describes. Returns the new scores. The
    arguments are those of `apply`.
    """
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
    """Left-pads token sequences with `NO_TOKEN` to a common length, and returns int32 [rows, length]. The length is at
    least `least`, and a power of 2 from 16 on, which limits the number of compiled programs.
    """
    size = 16
    while size < max([least, *map(len, texts)]):
        size *= 2
    tokens = np.full((rows, size), NO_TOKEN, np.int32)
    for row, text in enumerate(texts):
        tokens[row, size - len(text) :] = text
    return tokens


def _among(ids: jax.Array | np.ndarray, scores: jax.Array) -> jax.Array:
    """Returns a mask of the vocabulary entries that are in `ids`, boolean [vocab]. The vocabulary size is the last axis
    of `scores`.
    """
    return jnp.zeros(scores.shape[-1], bool).at[ids].set(True)


def _mentioned(text: jax.Array | np.ndarray, vocab: int) -> jax.Array:
    """Returns whether each vocabulary entry occurs in each row of `text` (token ids, integers [batch, length]), boolean
    [batch, vocab].
    """
    places = jnp.where(text == NO_TOKEN, vocab, text)
    return jnp.zeros((len(text), vocab), bool).at[jnp.arange(len(text))[:, None], places].set(True, mode="drop")


def _repeats(last: jax.Array, text: jax.Array | np.ndarray, vocab: int) -> jax.Array:
    """Finds the next tokens that would complete an n-gram that already occurs in a text.

    Args:
      last: newest n − 1 tokens of each row, integers [batch, n − 1].
      text: token ids of the text, integers [batch, length].
      vocab: vocabulary size.

    Returns:
      Whether each vocabulary entry would complete such an n-gram, boolean [batch, vocab].
    """
    size = last.shape[1]
    starts = text.shape[1] - size
    same = (last != NO_TOKEN).all(-1)[:, None] & (text[:, size:] != NO_TOKEN)
    for number in range(size):
        same &= text[:, number : number + starts] == last[:, number : number + 1]
    return _mentioned(jnp.where(same, text[:, size:], NO_TOKEN), vocab)
