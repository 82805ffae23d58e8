"""Masking for the masked language model (Devlin et al. 2019, §3.1), whole matrices at once."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Masked(NamedTuple):
    """Masked examples. The entries of example i are starts[i]:starts[i + 1] of the flat arrays."""

    tokens: np.ndarray
    """int32 [e, t]; of the chosen tokens 80% become `[MASK]`, 10% a random piece, and 10% stay."""
    positions: np.ndarray
    """int32 [n], indices into the row of `tokens`, ascending within an example."""
    targets: np.ndarray
    """int32 [n], the original tokens."""
    starts: np.ndarray
    """int64 [e + 1]."""


@dataclasses.dataclass(frozen=True)
class Masking:
    """How tokens are chosen and hidden."""

    rate: float
    """Share of the maskable tokens to choose; at least one wherever there is one."""
    limit: int
    """Tokens chosen in an example, at most."""
    mask_id: int
    """Id of `[MASK]`."""
    random_ids: np.ndarray
    """int32: ids that may replace a token."""


def mask(
    tokens: np.ndarray,
    maskable: np.ndarray,
    options: Masking,
    rng: np.random.Generator,
    words: np.ndarray | None = None,
) -> Masked:
    """Chooses tokens to predict and hides them.

    Args:
      tokens: int32 [e, t].
      maskable: bool [e, t], where a token may be chosen.
      options: how many are chosen, and what hides them.
      rng: the source of all randomness.
      words: int [e, t] from `words`, to choose all pieces of a word or none; a word of more than `options.limit` pieces
        counts as that many words.

    Returns:
      The masked tokens, and what to predict.
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
    """Number of the word that each token belongs to, int64 [e, t]; word_start is bool [vocab]."""
    begins = word_start[tokens]
    # A token after one that cannot be masked begins a word, even if the word is cut off there.
    begins[:, 1:] |= ~maskable[:, :-1]
    return np.cumsum(begins, axis=1)


def _split_long_words(words: np.ndarray, maskable: np.ndarray, limit: int) -> np.ndarray:
    rows, length = words.shape
    keys = words + np.arange(rows)[:, None] * (length + 1)
    sizes = np.bincount(keys.ravel(), weights=maskable.ravel(), minlength=rows * (length + 1))
    return np.where(sizes[keys] > limit, length + 1 + np.arange(length), words)


def _to_whole_words(words: np.ndarray, wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """The largest count up to `wanted` that ends with a word; otherwise the size of the first word.

    `words` is [e, t] in the order of choice, in which the pieces of a word are adjacent.
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
