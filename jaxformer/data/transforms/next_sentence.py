"""Cuts documents into sentence pairs for next-sentence prediction (Devlin et al. 2019), or into chunks of full
sentences (Liu et al. 2019).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_TRIES = 10
"""Maximum number of other documents to draw for a random second part. A drawn part is rejected if it equals the true
continuation.
"""


class SentencePair(NamedTuple):
    """Two parts of text for next-sentence prediction, each int32 [tokens]. `second` is None for a single text."""

    first: np.ndarray
    second: np.ndarray | None
    label: int
    """Class to predict: 0 if `second` follows `first` in the document, 1 if `second` is from another document."""


def sentence_pairs(
    sentences: list[np.ndarray],
    room: int,
    short_rate: float,
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], Sequence[np.ndarray]],
) -> list[SentencePair]:
    """Cuts a document into training examples for next-sentence prediction. Each is a pair of texts, and its label is
    whether the second one follows the first one.

    Sentences are collected until they reach a target length, and are split at a random sentence into two parts. In half
    of the pairs, a random part of another document replaces the second part, and the next pair begins with the replaced
    sentences. If a single sentence remains, it is left out: it could only have a random second part, which would
    unbalance the labels.

    Args:
      sentences: tokens of each sentence, int32 [tokens]. None of them is empty.
      room: maximum number of tokens of a pair, and its usual target length. In longer pairs, the longer part is
        truncated.
      short_rate: probability that a pair has a random target length below `room`.
      rng: random generator.
      draw: function that takes a random generator and returns the sentences of another document.

    Returns:
      A list of pairs, empty if the document has a single sentence. A random second part never equals the true
      continuation, even if the other document contains the same text.
    """
    pairs = []
    start = 0
    while len(sentences) - start >= 2:
        target = _target_length(room, short_rate, rng, least=2)
        stop = _gather(sentences, start, target, least=2)
        middle = start + 1 + _below(stop - start - 1, rng)
        first = np.concatenate(sentences[start:middle])
        pair = None
        if rng.random() < 0.5:
            following = np.concatenate(sentences[middle : middle + room])[:room]
            pair = _random_pair(first, following, target, room, rng, draw)
        if pair is None:
            second = np.concatenate(sentences[middle:stop])
            pair = SentencePair(*truncate(first, second, room, rng)[:2], 0)
            start = stop
        else:
            start = middle
        pairs.append(pair)
    return pairs


def _random_pair(first, following, target, room, rng, draw) -> SentencePair | None:
    """Makes a sentence pair whose second part is from another document. Returns None if none of the drawn documents
    gives a second part that differs from the true continuation.

    Args:
      first: tokens of the first part.
      following: tokens that follow the first part in its document.
      target: target number of tokens of the pair.
      room: maximum number of tokens of the pair.
      rng: random generator.
      draw: function that takes a random generator and returns the sentences of another document.
    """
    for _ in range(_TRIES):
        other = draw(rng)
        if not len(other):
            continue
        second = _stretch(other, _below(len(other), rng), max(1, target - len(first)))
        head, tail, skipped = truncate(first, second, room, rng)
        # A true continuation would appear from its beginning, or truncated in the same way.
        if len(tail) and not (_begins(following, tail) or _begins(following[skipped:], tail)):
            return SentencePair(head, tail, 1)
    return None


def _begins(tokens: np.ndarray, part: np.ndarray) -> bool:
    # Most parts differ in their first token, and comparing one token is cheap.
    return len(tokens) > 0 and tokens[0] == part[0] and np.array_equal(tokens[: len(part)], part)


def full_sentences(
    sentences: list[np.ndarray], room: int, short_rate: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Divides a document into chunks of whole sentences (FULL-SENTENCES, Liu et al. 2019). Returns the tokens of each
    chunk.

    Only a sentence longer than `room` is cut, and continues in the next chunk. Each token of the document is in exactly
    one chunk.

    Args:
      sentences: tokens of each sentence, int32 [tokens].
      room: maximum number of tokens per chunk.
      short_rate: probability that a chunk has a random lower maximum.
      rng: random generator.
    """
    found, parts, count = [], [], 0
    target = _target_length(room, short_rate, rng, least=1)
    for sentence in sentences:
        for part in np.split(sentence, range(room, len(sentence), room)):
            if parts and count + len(part) > target:
                found.append(np.concatenate(parts))
                parts, count = [], 0
                target = _target_length(room, short_rate, rng, least=1)
            parts.append(part)
            count += len(part)
    return [*found, np.concatenate(parts)] if parts else found


def truncate(
    first: np.ndarray, second: np.ndarray, room: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Truncates two parts of text to `room` tokens in total. Only a part with more than `room` / 2 tokens is truncated,
    and each token is removed at random from its front or back.

    Returns:
      Both parts, and the number of tokens removed from the front of the second part.
    """
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second, 0
    input_length = min(len(first), max(room - len(second), (room + 1) // 2))
    first, _ = _trim(first, input_length, rng)
    second, skipped = _trim(second, room - input_length, rng)
    return first, second, skipped


def _trim(tokens: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    excess = len(tokens) - length
    front = int(rng.binomial(excess, 0.5)) if excess else 0
    return tokens[front : front + length], front


def _target_length(room: int, short_rate: float, rng: np.random.Generator, least: int) -> int:
    if rng.random() >= short_rate:
        return room
    return least + _below(room - least + 1, rng)


def _gather(sentences: Sequence[np.ndarray], start: int, target: int, least: int) -> int:
    """Collects consecutive sentences, from index `start` on, until there are at least `target` tokens and `least`
    sentences, or no sentences remain.

    Returns the index after the last of these sentences.
    """
    stop, count = start, 0
    while stop < len(sentences) and (count < target or stop - start < least):
        count += len(sentences[stop])
        stop += 1
    return stop


def _stretch(sentences: Sequence[np.ndarray], start: int, target: int) -> np.ndarray:
    stop = _gather(sentences, start, target, least=1)
    return np.concatenate([sentences[index] for index in range(start, stop)])


def _below(limit: int, rng: np.random.Generator) -> int:
    # Ten times faster than rng.integers for a single number.
    return int(rng.random() * limit)
