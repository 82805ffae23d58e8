"""Span corruption (Raffel et al. 2020, §3.1.4): spans of a text are replaced by sentinels and predicted.

    text     Thank you for inviting me to your party last week
    inputs   Thank you <extra_id_0> me to your party <extra_id_1> week
    targets  <extra_id_0> for inviting <extra_id_1> last

Sentinels are numbered in order. A text begins with a visible token and ends with a hidden one, so the targets need no
sentinel after the last span. A `mean_span` of None is a prefix language model (§3.2.1 there): the text after a random
point is hidden, without a sentinel. The functions are pure, and the caller adds the end tokens.
"""

import collections
import functools
from typing import NamedTuple

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError


class Sizes(NamedTuple):
    """Numbers of tokens that a stretch can give, at most."""

    inputs: int
    targets: int
    both: int
    """Tokens of inputs and targets together."""
    sentinels: int


def sizes(length: int, rate: float, mean_span: float | None) -> Sizes:
    """The sizes for `length` tokens, 2 or more, with a share `rate` hidden in spans of `mean_span`."""
    if mean_span is None:
        return Sizes(length - 1, _longest_rest(length, rate), length, 0)
    hidden, spans = _amounts(length, rate, mean_span)
    return Sizes(length - hidden + spans, hidden + spans, length + 2 * spans, spans)


@functools.lru_cache
def stretch_length(rate: float, mean_span: float | None, input_length: int | None, length: int | None) -> int:
    """Tokens of the longest stretch whose inputs and targets, with their end tokens, fit; below 2 if none does.

    Args:
      rate: share of the tokens to hide.
      mean_span: length of a hidden span, on average; None hides the rest after a random point.
      input_length: room for the inputs; None: inputs and targets, without the last token, share `length`.
      length: room for the targets; None: unlimited.

    Returns:
      The number of tokens; every shorter stretch fits too.
    """

    def fits(count: int) -> bool:
        size = sizes(count, rate, mean_span)
        if input_length is None:
            return size.both + 1 <= length
        return size.inputs + 1 <= input_length and (length is None or size.targets + 1 <= length)

    count = 1
    while fits(count + 1):
        count += 1
    return count


def noise_mask(length: int, rate: float, mean_span: float | None, rng: np.random.Generator) -> np.ndarray:
    """bool [length], 2 or more: which tokens to hide. Arguments as those of `sizes`.

    Visible and hidden spans alternate; all divisions of the visible and of the hidden tokens into spans are equally
    likely.
    """
    if mean_span is None:
        return np.arange(length) >= length - rng.integers(1, _longest_rest(length, rate) + 1)
    hidden, spans = _amounts(length, rate, mean_span)
    lengths = np.stack([_divide(length - hidden, spans, rng), _divide(hidden, spans, rng)], axis=1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the spans under the mask by sentinels.

    Args:
      tokens: int32 [n].
      mask: bool [n].
      sentinels: int32, at least one id for each span.

    Returns:
      The inputs, with a sentinel for each span, and the targets, each span after its sentinel; int32 each.
    """
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    spans = int(begins.sum())
    inputs = tokens.copy()
    inputs[begins] = sentinels[:spans]
    targets = np.insert(tokens[mask], np.flatnonzero(begins[mask]), sentinels[:spans])
    return inputs[~mask | begins], targets.astype(np.int32)


def restore(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Inverts `corrupt`: the text, int32 [n], of inputs and targets, which may be rows or a model's output.

    Without any sentinel the targets continue the inputs. Padding and everything after an end token are left out.

    Raises:
      InputError: a sentinel is not exactly once in the inputs and once in the targets, or the targets do not begin
        with one.
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
                f"restore: {tokenizer.pieces[number]} stands {_times(read)} in the inputs and {_times(written)} in the "
                "targets; it must stand once in both"
            )


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _before_end(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    ids = ids[: ends[0]] if len(ends) else ids
    return ids[ids != tokenizer.pad_id]


def _amounts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Numbers of hidden tokens and of hidden spans; no span, visible or hidden, is empty."""
    hidden = min(max(round(length * rate), 1), length - 1)
    return hidden, max(1, min(round(hidden / mean_span), hidden, length - hidden))


def _longest_rest(length: int, rate: float) -> int:
    """Largest number of tokens after the random point, so that on average they are `rate` of all."""
    return min(max(round(2 * rate * length) - 1, 1), length - 1)


def _divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Random sizes, all positive, of `parts` parts that add up to `count`."""
    ends = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=count)
