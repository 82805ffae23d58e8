"""From prompts to what a model makes of them: checked, padded to few shapes, batched, decoded."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxformer.decoding import beams, loops, steps
from jaxformer.decoding.rules import NO_TOKEN, Rules
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.steps import Prompts
from jaxformer.errors import InputError

ROWS = 32
"""Prompts decoded together, at most."""
CHUNK = 8
"""Tokens that `stream` waits for at a time."""


def generate(
    model: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = Decoding(),
    end: int | None = None,
    start: int | None = None,
    prefix: bool = False,
    pieces: int | None = None,
) -> list[np.ndarray]:
    """The new tokens for each prompt: a `Gpt` goes on with it, an `EncoderDecoder` answers it.

    Prompts of similar lengths are decoded together; what comes of one depends on the others only where tokens are
    drawn. Programs are compiled once for a few lengths of prompts (`bucket`) and numbers of rows. Parameters on a mesh
    are used where they lie: call it under `jax.set_mesh`.

    Args:
      model: a `Gpt` or an `EncoderDecoder`.
      params: its parameters.
      prompts: ids of each.
      decoding: how to choose.
      end: the token that ends an output, where `decoding` names none.
      start: the token that begins an answer, for an `EncoderDecoder`.
      prefix: whether the tokens of a prompt see each other both ways, for a `Gpt` that is a prefix language model.
      pieces: the tokenizer's size; ids from there on are never chosen.

    Returns:
      int32 [n] for each prompt, with the end token where it came.

    Raises:
      InputError: a prompt is empty, longer than the model's positions or has a token outside of the vocabulary.
    """
    prompts = [checked(prompt, model) for prompt in prompts]
    check_specials(model, end, start, decoding)
    if not prompts:
        return []
    params = steps.ready(model, params)
    key = jax.random.key(decoding.seed)
    outputs: list[np.ndarray | None] = [None] * len(prompts)
    for number, indices in enumerate(by_length(prompts)):
        batch = _batch(model, [prompts[index] for index in indices], decoding, end, start, prefix, pieces)
        most = int(batch.rules.limits.max())
        room = bucket(decoding.max_new_tokens or most)
        if decoding.num_beams > 1:
            best = jax.device_get(beams.search(model, _static(decoding, batch), params, batch, room))
            tokens, lengths = best.tokens[:, 0], best.lengths[:, 0]
        else:
            arguments = model, _static(decoding, batch), params
            progress = loops.begin(*arguments, batch, room, jax.random.fold_in(key, number))
            progress = loops.advance(*arguments, progress, most)
            tokens, lengths = jax.device_get((progress.tokens, progress.lengths))
        for row, index in enumerate(indices):
            outputs[index] = tokens[row, : lengths[row]]
    return outputs


def stream(
    model: nn.Module,
    params: Any,
    prompt: Sequence[int],
    decoding: Decoding = Decoding(),
    end: int | None = None,
    start: int | None = None,
    prefix: bool = False,
    pieces: int | None = None,
) -> Iterator[np.ndarray]:
    """The tokens of `generate` for one prompt, a few at a time, as they come.

    Raises:
      InputError: as `generate` does, or for a beam search, which has no token before its end.
    """
    if decoding.num_beams > 1:
        raise InputError(f"decoding.num_beams={decoding.num_beams}: a beam search cannot be streamed; expected 1")
    prompt = checked(prompt, model)
    check_specials(model, end, start, decoding)
    batch = _batch(model, [prompt], decoding, end, start, prefix, pieces)
    arguments = model, _static(decoding, batch), steps.ready(model, params)
    most = int(batch.rules.limits.max())
    key = jax.random.fold_in(jax.random.key(decoding.seed), 0)
    progress, shown = loops.begin(*arguments, batch, bucket(decoding.max_new_tokens or most), key), 0
    while True:
        tokens, lengths, ended = jax.device_get((progress.tokens, progress.lengths, progress.ended))
        yield tokens[0, shown : lengths[0]]
        shown = int(lengths[0])
        if ended[0]:
            return
        progress = loops.advance(*arguments, progress, min(shown + CHUNK, most))


def bucket(length: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that is not below `length`."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def by_length(prompts: Sequence[np.ndarray], rows: int = ROWS) -> list[list[int]]:
    """The indices of the prompts in batches of similar lengths, the longest ones first."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    return [order[first : first + rows] for first in range(0, len(order), rows)]


def checked(prompt: Sequence[int], model: nn.Module, name: str = "prompt") -> np.ndarray:
    """The prompt, or what else its name is, as int32 [n].

    Raises:
      InputError: it is empty, longer than the model's positions or has a token outside of the vocabulary.
    """
    tokens = np.asarray(prompt, np.int32).reshape(-1)
    if not len(tokens):
        raise InputError(f"an empty {name}: expected at least one token")
    if len(tokens) > model.max_length:
        raise InputError(f"a {name} of {len(tokens)} tokens: the model has positions for {model.max_length}")
    outside = tokens[(tokens < 0) | (tokens >= model.vocab)]
    if len(outside):
        raise InputError(f"token {outside[0]} in a {name}: the model's vocabulary has 0 to {model.vocab - 1}")
    return tokens


def check_specials(
    model: nn.Module, end: int | None = None, start: int | None = None, decoding: Decoding = Decoding()
) -> None:
    """Raises InputError where a start token is missing, or a token is outside of the vocabulary."""
    if steps.answers(model) and start is None:
        raise InputError("start=None: an encoder–decoder needs the token that begins its answers")
    named = {"end": end, "start": start}
    tokens = [(name, token) for name, token in named.items() if token is not None]
    tokens += [(f"decoding.{name}", token) for name, ids in decoding.token_ids.items() for token in ids]
    for name, token in tokens:
        if not 0 <= token < model.vocab:
            raise InputError(f"{name}={token}: the model's vocabulary has 0 to {model.vocab - 1}")


def padded(prompts: Sequence[np.ndarray], longest: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments, int32 [b, t], of prompts padded on the right or on the left, and of rows without any.

    Shapes are few, so that compilations are.
    """
    length, rows = min(bucket(max(map(len, prompts))), longest), 1
    while rows < len(prompts):
        rows *= 2
    tokens = np.zeros((rows, length), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        place = slice(length - len(prompt), None) if left else slice(len(prompt))
        tokens[row, place], segments[row, place] = prompt, 1
    return tokens, segments


def _batch(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    end: int | None,
    start: int | None,
    prefix: bool = False,
    pieces: int | None = None,
) -> Prompts:
    tokens, segments = padded(prompts, model.max_length, left=True)
    # The last token needs no position: nothing follows it.
    used = np.ones(1, np.int32) if steps.answers(model) else segments.sum(1)
    most = decoding.max_new_tokens or decoding.max_length - used
    if np.min(most) < 1:
        raise InputError(
            f"decoding.max_length={decoding.max_length}: leaves no new token after {np.max(used)}; expected a larger "
            "one, or decoding.max_new_tokens"
        )
    limits = np.clip(most, 0, model.max_length + 1 - used) * (np.arange(len(tokens)) < len(prompts))
    ends = decoding.eos_token_ids if decoding.eos_token_ids is not None else [] if end is None else [end]
    rules = Rules.of(decoding, prompts, limits, ends, start if steps.answers(model) else None, pieces)
    return Prompts(tokens, segments, np.int32(NO_TOKEN if start is None else start), rules, prefix)


def _static(decoding: Decoding, prompts: Prompts) -> Decoding:
    """What a program is compiled for: all but what arrays say, which are the seed, numbers of tokens and their ends."""
    ends = [(token,) for token in prompts.rules.ends.tolist()]
    words = tuple(word for word in decoding.bad_words_ids if word not in ends)  # An end token may always come.
    said = {
        "seed": 0,
        "max_new_tokens": 1,
        "max_length": None,
        "min_new_tokens": 0,
        "min_length": 0,
        "eos_token_ids": None,
    }
    return Decoding(**{**vars(decoding), **said, "bad_words_ids": words})
