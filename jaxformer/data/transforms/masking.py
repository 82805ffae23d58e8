"""Token masking for masked language models (Devlin et al. 2019, §3.1), vectorized over examples."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Masked(NamedTuple):
    """Masked examples, and the tokens to predict. The entries of `positions` and `targets` with indices from starts[i]
    up to starts[i + 1] (exclusive) belong to example i.
    """

    tokens: np.ndarray
    """Token ids after masking, int32 [examples, length]. Of the tokens to predict, 80% are replaced by `[MASK]`, 10% by
    a random token, and 10% stay the same.
    """
    positions: np.ndarray
    """Column index in `tokens` of each token to predict, int32 [targets], concatenated over examples and ascending
    within each.
    """
    targets: np.ndarray
    """Original ids of the tokens to predict, int32 [targets], concatenated over examples."""
    starts: np.ndarray
    """Index of each example's first entry in `positions` and `targets`, followed by their length, int64 [examples + 1].
    """


@dataclasses.dataclass(frozen=True)
class Masking:
    """Options of masking: how many tokens of an example are chosen for prediction, and which tokens replace them."""

    rate: float
    """Share of the tokens to choose for prediction, among those that may be masked. At least one token is chosen if any
    may be masked.
    """
    limit: int
    """Maximum number of tokens to choose for prediction per example."""
    mask_id: int
    """Id of the token `[MASK]`."""
    random_ids: np.ndarray
    """Ids of the tokens from which a random replacement is drawn, int32."""


def mask(
    tokens: np.ndarray,
    maskable: np.ndarray,
    options: Masking,
    rng: np.random.Generator,
    words: np.ndarray | None = None,
) -> Masked:
    """Chooses random tokens to predict, and replaces most of them by `[MASK]` or random tokens.

    Args:
      tokens: token ids, int32 [examples, length].
      maskable: whether each token may be chosen, bool [examples, length].
      options: how many tokens are chosen, and which tokens replace them.
      rng: random generator.
      words: word number of each token, as returned by the function `words`, int [examples, length]. If given, a word is
        chosen with all its tokens or not at all, unless it has more than `options.limit` tokens. If None, tokens are
        chosen one by one.

    Returns:
      The masked examples, and the tokens to predict.
    """
    available = maskable.sum(axis=1)
    wanted = np.minimum(np.clip(np.rint(available * options.rate), 1, options.limit), available).astype(np.int64)
    if words is None:
        score = rng.random(tokens.shape)
    else:
        words = _split_long_words(words, maskable, options.limit)
        score = np.take_along_axis(rng.random((len(tokens), words.max() + 1)), words, axis=1)
    score[~maskable] = 2
    order = np.argsort(score, axis=1, kind="stable")
    if words is not None:
        wanted = _to_whole_words(np.take_along_axis(words, order, axis=1), wanted, available)
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, order, np.arange(tokens.shape[1]) < wanted[:, None], axis=1)
    examples, positions = np.nonzero(chosen)
    targets = tokens[examples, positions]
    tokens = tokens.copy()
    tokens[examples, positions] = _hide(targets, options, rng)
    starts = np.concatenate([[0], np.cumsum(wanted)])
    return Masked(tokens, positions.astype(np.int32), targets, starts)


def words(tokens: np.ndarray, maskable: np.ndarray, word_start: np.ndarray) -> np.ndarray:
    """Returns the number of the word to which each token belongs, counted within each example, int64 [examples,
    length].

    Args:
      tokens: token ids, int32 [examples, length].
      maskable: whether each token may be masked, bool [examples, length]. A word also begins after each token that may
        not be masked.
      word_start: whether each vocabulary entry begins a word, bool [vocab].
    """
    begins = word_start[tokens]
    # A token after an unmaskable token begins a word, even if it is in the middle of a word that was cut.
    begins[:, 1:] |= ~maskable[:, :-1]
    return np.cumsum(begins, axis=1)


def _split_long_words(words: np.ndarray, maskable: np.ndarray, limit: int) -> np.ndarray:
    rows, length = words.shape
    keys = words + np.arange(rows)[:, None] * (length + 1)
    sizes = np.bincount(keys.ravel(), weights=maskable.ravel(), minlength=rows * (length + 1))
    return np.where(sizes[keys] > limit, length + 1 + np.arange(length), words)


def _to_whole_words(words: np.ndarray, wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Reduces the number of tokens to choose in each example, so that the last chosen word is not chosen in part.

    If already the first word has more tokens than wanted, the result is the number of its tokens.

    Args:
      words: word number of each token, in the random order in which tokens are chosen, [examples, length]. Tokens of a
        word are adjacent.
      wanted: number of tokens to choose per example, [examples].
      available: number of tokens that may be chosen per example, [examples].

    Returns:
      New number of tokens to choose per example, [examples].
    """
    count = np.arange(1, words.shape[1] + 1)
    ends = np.ones(words.shape, bool)
    ends[:, :-1] = words[:, :-1] != words[:, 1:]
    ends |= count == available[:, None]
    whole = np.where(ends & (count <= wanted[:, None]), count, 0).max(axis=1)
    return np.where(whole > 0, whole, np.minimum(np.argmax(ends, axis=1) + 1, available))


def _hide(targets: np.ndarray, options: Masking, rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(len(targets))
    other = options.random_ids[rng.integers(len(options.random_ids), size=len(targets))]
    return np.where(draws < 0.8, options.mask_id, np.where(draws < 0.9, other, targets))
