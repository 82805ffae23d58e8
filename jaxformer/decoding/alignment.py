"""Times of words from the weights of cross-attention (Radford et al. 2022; Giorgino 2009 for dynamic time warping)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxformer.data.tokenizers.speech_tokens import SECONDS
from jaxformer.decoding.generate import bucket
from jaxformer.models.whisper import Whisper

SMOOTHED = 7
"""Number of positions of the median filter that smooths the weights in time."""
ENDS = tuple(".。,，!！?？:：”)]}、")
"""Punctuation that belongs to the character before it, in languages without spaces."""
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages that are written without spaces. Each character is a word."""


@dataclasses.dataclass(frozen=True)
class TimedWord:
    """A word and its tokens, with the time at which it is said."""

    text: str
    """The word, with the punctuation that belongs to it."""
    tokens: int
    """Number of tokens of the word."""
    start: float
    """Start in seconds, from the start of the window."""
    end: float
    """End in seconds, from the start of the window."""


def align(
    weights: Callable[[np.ndarray], np.ndarray],
    prefix: Sequence[int],
    words: Sequence[tuple[str, Sequence[int]]],
    end: int,
    positions: int,
) -> list[TimedWord]:
    """Finds the time of each word of a window.

    Args:
      weights: function of the tokens [length] that returns the weights of cross-attention of some heads,
        [heads, length, encoder positions].
      prefix: tokens before the words, which have no time.
      words: words with their tokens, from `split_words`.
      end: end token of outputs.
      positions: number of encoder positions that belong to the sound.
    """
    if not words:
        return []
    tokens = np.array([*prefix, *(token for _, part in words for token in part), end], np.int32)
    costs = -_smoothed(weights(tokens)[:, :, : max(1, positions)])[len(prefix) :]
    rows, columns = warp(costs)
    times = columns[np.flatnonzero(np.diff(rows, prepend=-1))] * SECONDS
    bounds = np.cumsum([0, *(len(part) for _, part in words)])
    timed = zip(words, bounds[:-1], bounds[1:], strict=True)
    return [TimedWord(text, len(part), float(times[a]), float(times[b])) for (text, part), a, b in timed]


def _smoothed(weights: np.ndarray) -> np.ndarray:
    """Normalizes and smooths weights [heads, length, positions], and averages the heads: [length, positions]."""
    weights = weights.astype(np.float64)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    spread = weights.std(1, keepdims=True)
    scores = (weights - weights.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    if scores.shape[-1] > SMOOTHED // 2:
        scores = scipy.ndimage.median_filter(scores, (1, 1, SMOOTHED), mode="mirror")
    return scores.mean(0)


def warp(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the cheapest path through a matrix [rows, columns] from its first to its last cell, by steps to the next
    row, the next column, or both. Returns the row and the column of each cell of the path.
    """
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    steps = np.zeros((rows + 1, columns + 1), np.int8)
    steps[0], steps[:, 0] = 2, 1
    # The cells of a diagonal depend only on the two diagonals before it.
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        both, down, right = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        step = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        total[row, column] = costs[row - 1, column - 1] + np.choose(step, [both, down, right])
        steps[row, column] = step
    path, row, column = [], rows, columns
    while row or column:
        path.append((row - 1, column - 1))
        step = steps[row, column]
        row, column = row - (step < 2), column - (step != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]


def split_words(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str], language: str = "en"
) -> list[tuple[str, list[int]]]:
    """Divides tokens into words, each with its tokens.

    A word begins with a space. In languages that are written without spaces, each character is a word, with the
    punctuation after it.

    Args:
      tokens: tokens of words, without special tokens.
      decode: decodes tokens to text.
      language: code of the language.
    """
    units: list[tuple[str, list[int]]] = []
    part: list[int] = []
    for token in tokens:
        part.append(token)
        text = decode(part)
        if "\ufffd" not in text:  # A character may consist of several tokens.
            units.append((text, part))
            part = []
    if part:
        units.append((decode(part), part))
    words: list[tuple[str, list[int]]] = []
    for text, ids in units:
        begins = text.strip() not in ENDS if language in UNSPACED else text.startswith(" ")
        if begins or not words:
            words.append((text, ids))
        else:
            words[-1] = (words[-1][0] + text, [*words[-1][1], *ids])
    return words


def head_weights(
    model: Whisper, params: Any, log_mel: np.ndarray, heads: Sequence[tuple[int, int]]
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that computes the weights of cross-attention for tokens [length] of one window:
    [heads, length, encoder positions].

    Args:
      model: the model.
      params: parameters of the model.
      log_mel: features of the window, [frames, mels].
      heads: pairs of a layer and a head. If empty, all heads of the second half of the layers.
    """
    depth, count = model.decoder.depth, model.decoder.heads
    chosen = tuple(heads) or tuple((layer, head) for layer in range(depth // 2, depth) for head in range(count))

    def weights(tokens: np.ndarray) -> np.ndarray:
        size = min(bucket(len(tokens)), model.max_length)
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens[:size]
        found = np.asarray(_weights(model, chosen, params, log_mel[None], padded))[:, : len(tokens)]
        missing = len(tokens) - found.shape[1]  # The end token of an output that fills all positions.
        return np.concatenate([found, found[:, -1:]], axis=1) if missing > 0 else found

    return weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights(model: Whisper, heads: tuple[tuple[int, int], ...], params: Any, log_mel, tokens) -> jax.Array:
    output = model.apply({"params": params}, log_mel, tokens, return_memory_attention=True)
    layers, numbers = (jnp.array(part) for part in zip(*heads, strict=True))
    return output.memory_attention[layers, 0, numbers]
