"""Computes when each word of a transcript is spoken, by dynamic time warping of cross-attention weights (Radford et al.
2022; Giorgino 2009).
"""

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
"""Length of the median filter that smooths cross-attention weights over time, in encoder positions."""
ENDS = tuple(".。,，!！?？:：”)]}、")
"""Punctuation marks that belong to the preceding character, in languages that are written without spaces."""
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Codes of languages that are written without spaces. In these languages, each character counts as a word."""


@dataclasses.dataclass(frozen=True)
class TimedWord:
    """A word of a transcript, and when it is spoken."""

    text: str
    """The word, with a leading space if there is one, and with its punctuation."""
    tokens: int
    """Number of tokens that the word consists of."""
    start: float
    """Time at which the word starts, in seconds from the start of the window of sound."""
    end: float
    """Time at which the word ends, in seconds from the start of the window of sound."""


def align(
    weights: Callable[[np.ndarray], np.ndarray],
    prefix: Sequence[int],
    words: Sequence[tuple[str, Sequence[int]]],
    end: int,
    positions: int,
) -> list[TimedWord]:
    """Computes when each word in the output for a window of sound is spoken.

    Args:
      weights: function that takes token ids [length] and returns the cross-attention weights of some heads, [heads,
        length, encoder positions], such as the result of `head_weights`.
      prefix: special tokens before the words, which are not timed.
      words: (text, token ids) of each word, from `split_words`.
      end: id of the EOS token.
      positions: number of encoder positions that contain sound rather than padding.
    """
    if not words:
        return []
    tokens = np.array([*prefix, *(token for _, part in words for token in part), end], np.int32)
    costs = -_smoothed(weights(tokens)[:, :, : max(1, positions)])[len(prefix) :]
    rows, columns = dynamic_time_warping(costs)
    times = columns[np.flatnonzero(np.diff(rows, prepend=-1))] * SECONDS
    bounds = np.cumsum([0, *(len(part) for _, part in words)])
    timed = zip(words, bounds[:-1], bounds[1:], strict=True)
    return [TimedWord(text, len(part), float(times[a]), float(times[b])) for (text, part), a, b in timed]


def _smoothed(weights: np.ndarray) -> np.ndarray:
    """Normalizes the cross-attention weights of each head, standardizes them over the tokens, smooths them over time,
    and averages the heads. Input is [heads, length, positions], output [length, positions].
    """
    weights = weights.astype(np.float64)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    spread = weights.std(1, keepdims=True)
    scores = (weights - weights.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    if scores.shape[-1] > SMOOTHED // 2:
        scores = scipy.ndimage.median_filter(scores, (1, 1, SMOOTHED), mode="mirror")
    return scores.mean(0)


def dynamic_time_warping(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic time warping: finds the path of least total cost through a matrix [rows, columns], from its first to its
    last cell. Each step goes to the next row, the next column, or both.

    Returns:
      Row indices and column indices of the cells of the path, each int [cells].
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
    """Divides the tokens of an output into words. Returns (text, token ids) of each word.

    A word begins with a space. In languages that are written without spaces, each character is a word, together with
    the punctuation marks after it.

    Args:
      tokens: token ids without special tokens.
      decode: function that decodes token ids to text.
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
    """Returns a function that takes the token ids [length] of an output, and returns the cross-attention weights of
    some heads for a window of sound, [heads, length, encoder positions].

    Args:
      model: the speech recognizer.
      params: parameters of the model.
      log_mel: log-mel spectrogram of the window, [frames, mels].
      heads: (layer, head) of each head to use. If empty, all heads of the second half of the decoder layers.
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
