"""Masking for the masked language model (Devlin et al. 2019, section 3.1), whole matrices at once."""

from typing import NamedTuple

import numpy as np


class Masked(NamedTuple):
    """Masked examples. Those of example i lie at starts[i]:starts[i + 1] of the flat arrays."""

    tokens: np.ndarray
    """int32 [e, t], 80% of the chosen ones `[MASK]`, 10% a random piece, 10% as they were."""
    positions: np.ndarray
    """int32 [n], index into the row of `tokens`, rising within an example."""
    targets: np.ndarray
    """int32 [n], the original tokens."""
    starts: np.ndarray
    """int64 [e + 1]."""


def mask(
    tokens: np.ndarray,
    maskable: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    limit: int,
    mask_id: int,
    random_ids: np.ndarray,
    words: np.ndarray | None = None,
) -> Masked:
    """Chooses tokens to predict and hides them.

    Args:
        tokens: int32 [e, t].
        maskable: bool [e, t], where a token may be chosen.
        rng: decides everything.
        rate: share of the maskable tokens to choose; at least one wherever there is one.
        limit: tokens chosen in an example, at most.
        mask_id: id of `[MASK]`.
        random_ids: ids that may replace a token.
        words: int [e, t] from `words`, to choose all of a word or nothing; a word of more than
            `limit` pieces is taken as so many words.

    Returns:
        The masked tokens, and what to predict.
    """
    available = maskable.sum(axis=1)
    wanted = np.minimum(np.clip(np.rint(available * rate), 1, limit), available).astype(np.int64)
    if words is None:
        score = rng.random(tokens.shape)
    else:
        words = _split_long_words(words, maskable, limit)
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
    tokens[examples, positions] = _hide(targets, rng, mask_id, random_ids)
    starts = np.concatenate([[0], np.cumsum(wanted)])
    return Masked(tokens, positions.astype(np.int32), targets, starts)


def words(tokens: np.ndarray, maskable: np.ndarray, word_start: np.ndarray) -> np.ndarray:
    """Number of the word that each token belongs to, int64 [e, t]; word_start is bool [vocab]."""
    begins = word_start[tokens]
    # What follows a token that cannot be masked begins a word, cut off or not.
    begins[:, 1:] |= ~maskable[:, :-1]
    return np.cumsum(begins, axis=1)


def _split_long_words(words: np.ndarray, maskable: np.ndarray, limit: int) -> np.ndarray:
    rows, length = words.shape
    keys = words + np.arange(rows)[:, None] * (length + 1)
    sizes = np.bincount(keys.ravel(), weights=maskable.ravel(), minlength=rows * (length + 1))
    return np.where(sizes[keys] > limit, length + 1 + np.arange(length), words)


def _to_whole_words(words: np.ndarray, wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """The largest count up to `wanted` that ends with a word; else the first word's size.

    words: [e, t] in the order of choice, where the pieces of a word stand together.
    """
    count = np.arange(1, words.shape[1] + 1)
    ends = np.ones(words.shape, bool)
    ends[:, :-1] = words[:, :-1] != words[:, 1:]
    ends |= count == available[:, None]
    whole = np.where(ends & (count <= wanted[:, None]), count, 0).max(axis=1)
    return np.where(whole > 0, whole, np.minimum(np.argmax(ends, axis=1) + 1, available))


def _hide(targets, rng, mask_id, random_ids) -> np.ndarray:
    lot = rng.random(len(targets))
    other = random_ids[rng.integers(len(random_ids), size=len(targets))]
    return np.where(lot < 0.8, mask_id, np.where(lot < 0.9, other, targets))
