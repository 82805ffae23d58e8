"""Span corruption (Raffel et al. 2020, §3.1.4): replaces spans of a text by sentinels, and predicts the spans.

    text     Thank you for inviting me to your party last week
    inputs   Thank you <extra_id_0> me to your party <extra_id_1>
    targets  <extra_id_0> for inviting <extra_id_1> last week

Sentinels are numbered in order. The first token of a text is always kept and its last token is always replaced, so
that the targets need no sentinel after the last span. If `mean_span` is None, the task is prefix language modeling
(§3.2.1): the text after a random point is hidden, without a sentinel. The functions are pure, and the caller adds EOS
tokens.
"""

import collections
import functools
from typing import NamedTuple

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError


class Sizes(NamedTuple):
    """Maximum sizes, without EOS tokens, of the training example that span corruption makes from a chunk of text."""

    inputs: int
    """Maximum number of input tokens made from one chunk of text."""
    targets: int
    """Maximum number of target tokens made from one chunk of text."""
    both: int
    """Maximum total number of input and target tokens made from one chunk of text."""
    sentinels: int
    """Maximum number of sentinels needed for one chunk of text."""


def sizes(length: int, rate: float, mean_span: float | None) -> Sizes:
    """Computes the maximum sizes of the training example that span corruption makes from a chunk of text.

    Args:
      length: number of tokens in the chunk, at least 2.
      rate: average share of the tokens to hide.
      mean_span: average length of a hidden span in tokens. If None, everything after a random point is hidden.
    """
    if mean_span is None:
        return Sizes(length - 1, _longest_rest(length, rate), length, 0)
    hidden, spans = _amounts(length, rate, mean_span)
    return Sizes(length - hidden + spans, hidden + spans, length + 2 * spans, spans)


@functools.lru_cache
def stretch_length(rate: float, mean_span: float | None, input_length: int | None, length: int | None) -> int:
    """Returns the maximum number of tokens of a chunk of text from which span corruption makes an example that fits in
    the given limits, including EOS tokens.

    Args:
      rate: average share of the tokens to hide.
      mean_span: average length of a hidden span in tokens. If None, everything after a random point is hidden.
      input_length: maximum number of encoder input tokens. If None, as for a decoder-only model, `length` limits the
        sum of input and target tokens, not counting the last target.
      length: maximum number of target tokens. If None, unlimited.

    Returns:
      The number of tokens. All shorter chunks fit too. If it is below 2, the limits are too low for any chunk.

    Raises:
      ValueError: If both limits are None.
    """
    if input_length is None and length is None:
        raise ValueError("input_length=None, length=None: expected at least one number")

    def fits(count: int) -> bool:
        size = sizes(count, rate, mean_span)
        if input_length is not None and size.inputs + 1 > input_length:
            return False
        needed = size.both if input_length is None else size.targets
        return length is None or needed + 1 <= length

    count = 1
    while fits(count + 1):
        count += 1
    return count


def noise_mask(length: int, rate: float, mean_span: float | None, rng: np.random.Generator) -> np.ndarray:
    """Returns a random mask of the tokens of a chunk that are to be hidden, bool [length].

    Visible and hidden spans alternate. All divisions of the visible tokens into spans are equally likely, and so are
    all divisions of the hidden tokens.

    Args:
      length: number of tokens in the chunk, at least 2.
      rate: average share of the tokens to hide.
      mean_span: average length of a hidden span in tokens. If None, everything after a random point is hidden.
      rng: random generator.
    """
    if mean_span is None:
        return np.arange(length) >= length - rng.integers(1, _longest_rest(length, rate) + 1)
    hidden, spans = _amounts(length, rate, mean_span)
    lengths = np.stack([_divide(length - hidden, spans, rng), _divide(hidden, spans, rng)], axis=1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces each hidden span of a chunk by a sentinel, and returns the inputs and targets of span corruption.

    Args:
      tokens: tokens of the chunk, int32 [tokens].
      mask: whether to hide each token, bool [tokens].
      sentinels: sentinel ids, int32, at least one per span.

    Returns:
      Inputs, in which a sentinel replaces each span, and targets, in which each span follows its sentinel. Both are
      int32 [tokens].
    """
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    spans = int(begins.sum())
    inputs = tokens.copy()
    inputs[begins] = sentinels[:spans]
    targets = np.insert(tokens[mask], np.flatnonzero(begins[mask]), sentinels[:spans])
    return inputs[~mask | begins], targets.astype(np.int32)


def restore(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Inverse of `corrupt`: inserts the spans in `targets` into `inputs` at their sentinels. Returns the original text,
    int32 [tokens].

    Both arguments are token ids, from a batch row or generated by a model. Padding, and everything from the EOS token
    on, is removed. If there are no sentinels, returns the inputs followed by the targets.

    Raises:
      InputError: If a sentinel does not occur exactly once in the inputs and once in the targets, or if the targets do
        not begin with a sentinel.
    """
    inputs, targets = (_before_end(np.asarray(ids, np.int32), tokenizer) for ids in (inputs, targets))
    places, starts = (np.flatnonzero(np.isin(ids, tokenizer.sentinel_ids)) for ids in (inputs, targets))
    _check_pairs(inputs[places], targets[starts], tokenizer)
    if len(starts) and starts[0]:
        raise InputError(
            f"restore: the targets begin with {tokenizer.piece(int(targets[0]))!r}; they must begin with a sentinel"
        )
    before, *rest = np.split(inputs, places)
    if not rest:
        return np.concatenate([before, targets])
    spans = {int(span[0]): span[1:] for span in np.split(targets, starts)[1:]}
    return np.concatenate([before, *(part for kept in rest for part in (spans[int(kept[0])], kept[1:]))])


def _check_pairs(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> None:
    counts = [collections.Counter(ids.tolist()) for ids in (inputs, targets)]
    for number in counts[0] | counts[1]:
        read, written = (count[number] for count in counts)
        if (read, written) != (1, 1):
            raise InputError(
                f"restore: {tokenizer.pieces[number]} occurs {_times(read)} in the inputs and {_times(written)} in the "
                "targets; it must occur once in both"
            )


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _before_end(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    ids = ids[: ends[0]] if len(ends) else ids
    return ids[ids != tokenizer.pad_id]


def _amounts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Computes how many tokens of a chunk to hide, and in how many spans. Returns both numbers. No hidden or visible
    span is empty.

    Args:
      length: number of tokens in the chunk.
      rate: average share of the tokens to hide.
      mean_span: average length of a hidden span in tokens.
    """
    hidden = min(max(round(length * rate), 1), length - 1)
    return hidden, max(1, min(round(hidden / mean_span), hidden, length - hidden))


def _longest_rest(length: int, rate: float) -> int:
    """Returns the maximum number of tokens at the end of a chunk that prefix language modeling hides.

    The number of hidden tokens is drawn uniformly from 1 to this maximum, so that the average share of hidden tokens is
    about `rate`.
    """
    return min(max(round(2 * rate * length) - 1, 1), length - 1)


def _divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `parts` random positive integers whose sum is `count`, as the lengths of consecutive spans."""
    ends = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=count)
