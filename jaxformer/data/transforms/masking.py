"""Token masking for masked language models (Devlin et al. 2019, §3.1), vectorized over examples."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Masked(NamedTuple):
    """Masked examples. `positions` and `targets` are flat: their entries from starts[i] to starts[i + 1] belong to
    example i.
    """

    tokens: np.ndarray
    """Tokens with masks, int32 [examples, length]. Of the tokens to predict, 80% become `[MASK]`, 10% become a random
    piece, and 10% stay the same.
    """
    positions: np.ndarray
    """Indices, within a row of `tokens`, of the tokens to predict, int32 [targets]. They ascend within an example."""
    targets: np.ndarray
    """Original ids of the tokens to predict, int32 [targets]."""
    starts: np.ndarray
    """Index in `positions` and `targets` of the first entry of each example, and their total number, int64
    [examples + 1].
    """


@dataclasses.dataclass(frozen=True)
class Masking:
    """Options that determine how many tokens are chosen for prediction, and which tokens replace them."""

    rate: float
    """Share of the maskable tokens to choose. At least one token is chosen if any is maskable."""
    limit: int
    """Maximum number of chosen tokens per example."""
    mask_id: int
    """Id of the token `[MASK]`."""
    random_ids: np.ndarray
    """Ids of the tokens that may randomly replace a chosen token, int32."""


def mask(
    tokens: np.ndarray,
    maskable: np.ndarray,
    options: Masking,
    rng: np.random.Generator,
    words: np.ndarray | None = None,
) -> Masked:
    """Chooses tokens to predict and masks them.

    Args:
      tokens: tokens, int32 [examples, length].
      maskable: whether each token may be chosen, bool [examples, length].
      options: how many tokens are chosen, and what replaces them.
      rng: random generator.
      words: word numbers returned by the function `words`, int [examples, length]. If given, either all pieces of a
        word are chosen or none. Each piece of a word with more than `options.limit` pieces counts as a word.

    Returns:
      The masked tokens, and the targets.
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
    """Numbers the words of each example. Returns the word number of each token, int64 [examples, length].

    Args:
      tokens: tokens, int32 [examples, length].
      maskable: whether each token may be chosen, bool [examples, length].
      word_start: whether each piece of the vocabulary begins a word, bool [vocab].
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
    """Rounds the number of tokens to choose in each example down, so that no word is chosen in part.

    If even the first word has more tokens than wanted, returns the size of the first word.

    Args:
      words: word numbers in the order in which tokens are chosen, [examples, length]. Pieces of a word are adjacent.
      wanted: wanted number of tokens per example, [examples].
      available: number of maskable tokens per example, [examples].
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
