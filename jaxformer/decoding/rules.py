"""Changes to the scores of a row's next token that depend on more than the scores: lengths, repetitions, banned tokens.

Definitions and their order are those of transformers' logits processors. What a setting at its default would need is
None, and nothing is computed for it.
"""

import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding.choosing import NEVER, weaken
from jaxformer.decoding.settings import Decoding

NO_TOKEN = -1
"""Where there is no token: before a prompt that is shorter than others, and for a start token that is not needed."""


@flax.struct.dataclass
class Rules:
    """The rules of a batch of b rows."""

    limits: jax.Array
    """Integers [b]: new tokens, at most; 0 for a row that only fills the batch."""
    ends: jax.Array
    """Integers [e]: the tokens that end a row."""
    least: jax.Array | None = None
    """Integers [b]: new tokens before one of `ends` may come."""
    given: jax.Array | None = None
    """Integers [b, g]: what the output follows, a prompt or a start token, after `NO_TOKEN`s."""
    read: jax.Array | None = None
    """Integers [b, t]: the prompt, after `NO_TOKEN`s."""
    alone: jax.Array | None = None
    """Boolean [b]: whether the output follows one token only."""
    pieces: int | None = flax.struct.field(pytree_node=False, default=None)
    """Ids from here on are not in the tokenizer; None: all are."""

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
        """The rules for some prompts, perhaps fewer than the rows of `limits`.

        Args:
          decoding: the settings.
          prompts: int32 [n] each.
          limits: int32 [b].
          ends: the tokens that end an output.
          followed: int32 [k] each: what the outputs follow, if it is not the prompts.
          pieces: the tokenizer's size, if the model's vocabulary is larger.
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
        """The rules for `times` rows in the place of each."""
        return jax.tree.map(lambda array: jnp.repeat(array, times, axis=0), self).replace(ends=self.ends)

    def is_end(self, tokens: jax.Array) -> jax.Array:
        """Whether tokens, integers [...], end their rows; boolean [...]."""
        return (tokens[..., None] == self.ends).any(-1)

    def only_pieces(self, logits: jax.Array) -> jax.Array:
        """Logits [..., v] with -inf at the ids that the tokenizer does not have."""
        return without_pieces(logits, self.pieces)


def without_pieces(logits: jax.Array, pieces: int | None) -> jax.Array:
    """Logits [..., v] with -inf at the ids from `pieces` on, which the tokenizer does not have."""
    if pieces is None or pieces >= logits.shape[-1]:
        return logits
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < pieces, logits, NEVER)


def apply(
    scores: jax.Array, seen: jax.Array | None, output: jax.Array, count: jax.Array, rules: Rules, decoding: Decoding
) -> jax.Array:
    """The scores by which each row's next token is chosen.

    Args:
      scores: float32 [b, v], logits or log-probabilities.
      seen: boolean [b, v], tokens that were there before, where `repetition_penalty` needs them.
      output: integers [b, n]: the new tokens.
      count: scalar: how many of them there are so far.
      rules: of the rows.
      decoding: the settings.
    """
    vocab = scores.shape[-1]
    if decoding.encoder_repetition_penalty != 1:
        scores = weaken(scores, _mentioned(rules.read, vocab), 1 / decoding.encoder_repetition_penalty)
    scores = weaken(scores, seen, decoding.repetition_penalty)
    history = None
    if rules.given is not None:
        output = jnp.where(jnp.arange(output.shape[1]) < count, output, NO_TOKEN)
        history = jnp.concatenate([rules.given, output], axis=1)

    def last(size):
        return jax.lax.dynamic_slice_in_dim(history, rules.given.shape[1] + count - size, size, axis=1)

    if size := decoding.no_repeat_ngram_size:
        scores = jnp.where(_repeats(last(size - 1), history, vocab), NEVER, scores)
    if size := decoding.encoder_no_repeat_ngram_size:
        recent = last(size - 1) if size > 1 else jnp.zeros((len(scores), 0), jnp.int32)
        scores = jnp.where(_repeats(recent, rules.read, vocab), NEVER, scores)
    for length, words in itertools.groupby(sorted(decoding.bad_words_ids, key=len), key=len):
        words = np.array(list(words))
        if length == 1:
            scores = scores.at[:, words[:, 0]].set(NEVER)
        else:
            completed = (last(length - 1)[:, None] == words[:, :-1]).all(-1)
            scores = scores.at[:, words[:, -1]].min(jnp.where(completed, NEVER, jnp.inf))
    return _apply_lengths(scores, count, rules, decoding)


def _apply_lengths(scores: jax.Array, count: jax.Array, rules: Rules, decoding: Decoding) -> jax.Array:
    """Applies the rules that depend on the number of new tokens, and then suppresses tokens."""
    if rules.least is not None:
        early = (count < rules.least)[:, None]
        scores = jnp.where(early & _among(rules.ends, scores), NEVER, scores)
    first = count == 0
    if decoding.forced_bos_token_id is not None:
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


def _before(texts: Sequence[np.ndarray], rows: int, least: int = 1) -> np.ndarray:
    """Texts on the right of int32 [rows, t], t at least `least` and of few sizes."""
    size = 16
    while size < max([least, *map(len, texts)]):
        size *= 2
    tokens = np.full((rows, size), NO_TOKEN, np.int32)
    for row, text in enumerate(texts):
        tokens[row, size - len(text) :] = text
    return tokens


def _among(ids: jax.Array | np.ndarray, scores: jax.Array) -> jax.Array:
    """Boolean [v]: which tokens are among the ids."""
    return jnp.zeros(scores.shape[-1], bool).at[ids].set(True)


def _mentioned(text: jax.Array, vocab: int) -> jax.Array:
    """Boolean [b, v]: the tokens of each row of integers [b, t]."""
    places = jnp.where(text == NO_TOKEN, vocab, text)
    return jnp.zeros((len(text), vocab), bool).at[jnp.arange(len(text))[:, None], places].set(True, mode="drop")


def _repeats(last: jax.Array, text: jax.Array, vocab: int) -> jax.Array:
    """Boolean [b, v]: the tokens that follow each row's `last` tokens, integers [b, n], anywhere in its text [b, t]."""
    size = last.shape[1]
    starts = text.shape[1] - size
    same = (last != NO_TOKEN).all(-1)[:, None] & (text[:, size:] != NO_TOKEN)
    for number in range(size):
        same &= text[:, number : number + starts] == last[:, number : number + 1]
    return _mentioned(jnp.where(same, text[:, size:], NO_TOKEN), vocab)
