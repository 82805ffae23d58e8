"""Generates text with a model: checks the prompts, pads them to batches, and decodes each batch."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tokenizers.tokenizer import Ids
from jaxformer.decoding import beams, loops, steps
from jaxformer.decoding.rules import Rules
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.steps import Prompts
from jaxformer.errors import InputError
from jaxformer.models.base import Model

ROWS = 32
"""Maximum number of prompts that are decoded in one batch."""
CHUNK = 8
"""Number of tokens that `stream` generates before it yields them together."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Tokens that were generated for a prompt, and their log-probability."""

    tokens: np.ndarray
    """Generated token ids, int32 [tokens], including the EOS token if it was generated."""
    log_probability: float
    """Sum of the log-probabilities of the tokens in nats, after all logits processors but before sampling settings such
    as the temperature. NaN if it was not computed.
    """


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Input of the model for one output: token ids to continue, and encoder inputs if the model has an encoder."""

    tokens: np.ndarray
    """Token ids that the output continues, int32 [tokens]. For an encoder–decoder, the decoder start token or a longer
    prefix.
    """
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Encoder inputs, keyed by argument name of `Model.encode_prompt`: token ids [tokens], or an array such as an
    image, with the same shape for all prompts. Empty for a model without an encoder.
    """

    @property
    def read(self) -> np.ndarray:
        """Token ids of the prompt, which logits processors such as `encoder_repetition_penalty` use: the encoder input
        if it is token ids, otherwise `tokens`.
        """
        return next((array for array in self.inputs.values() if array.ndim == 1), self.tokens)


def as_prompt(prompt: Prompt | Ids, model: Model, start: int | None) -> Prompt:
    """Converts token ids to a `Prompt`: for an encoder–decoder, with the ids as encoder input and `start` as decoder
    input; for a decoder, with the ids as tokens to continue. A `Prompt` is checked and returned unchanged.

    Raises:
      InputError: If the sequence of token ids is empty, exceeds the model's maximum length, or contains an id outside
        the vocabulary.
    """
    if isinstance(prompt, Prompt):
        checked(prompt.tokens, model, "forced prefix" if prompt.inputs else "prompt")
        return prompt
    tokens = checked(prompt, model)
    return Prompt(np.array([start], np.int32), {"inputs": tokens}) if model.is_encoder_decoder else Prompt(tokens)


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Prompt | Ids],
    decoding: Decoding = Decoding(),
    end: int | None = None,
    start: int | None = None,
    prefix: bool = False,
    pieces: int | None = None,
) -> list[np.ndarray]:
    """Generates the continuation of each prompt (decoder), or the output for it (encoder–decoder).

    Prompts of similar lengths are decoded in one batch. Except for sampling, outputs do not depend on the batch. One
    XLA program is compiled per padded prompt length (see `bucket`) and batch size. If the parameters are sharded over a
    mesh, call this function in the context of `sharding.use`.

    Args:
      model: generative model.
      params: parameters of the model.
      prompts: token ids of each prompt, or a `Prompt`.
      decoding: decoding settings.
      end: id of the EOS token. Used only if `decoding.eos_token_ids` is None.
      start: id of the decoder start token. Required for an encoder–decoder, in which it starts the decoder input of
        prompts that are token ids.
      prefix: whether attention within a prompt is bidirectional, for a prefix language model.
      pieces: vocabulary size of the tokenizer, if the model has more ids. Token ids from this number on are never
        generated. If None, all ids may be generated.

    Returns:
      Generated token ids for each prompt, int32 [tokens], including the EOS token if it was generated.

    Raises:
      InputError: If a prompt is empty, exceeds the model's maximum length, or contains an id outside the vocabulary.
        Also if the start token of an encoder–decoder is missing.
    """
    check_specials(model, end, start, decoding)
    asked = [as_prompt(prompt, model, start) for prompt in prompts]
    outputs = _outputs(model, params, asked, decoding, lambda some: _batch(model, some, decoding, end, prefix, pieces))
    return [output.tokens for output in outputs]


def generate_scored(
    model: Model,
    params: Any,
    asked: Sequence[Prompt],
    decoding: Decoding = Decoding(),
    end: int | None = None,
) -> list[Output]:
    """Generates an output for each prompt as `generate` does, and also returns its log-probability. For beam search,
    sets `renormalize_logits`, so that hypotheses are compared by these log-probabilities.

    Args:
      model: generative model.
      params: parameters of the model.
      asked: prompts, whose tokens were checked by `checked`.
      decoding: decoding settings.
      end: id of the EOS token. Used only if `decoding.eos_token_ids` is None.
    """
    if decoding.num_beams > 1:
        decoding = dataclasses.replace(decoding, renormalize_logits=True)

    def batch_of(some: Sequence[Prompt]) -> Prompts:
        return dataclasses.replace(_batch(model, some, decoding, end), scored=True)

    return _outputs(model, params, asked, decoding, batch_of)


def _outputs(
    model: Model,
    params: Any,
    asked: Sequence[Prompt],
    decoding: Decoding,
    batch_of: Callable[[Sequence[Prompt]], Prompts],
) -> list[Output]:
    """Decodes prompts batch by batch, and returns the outputs in the order of the prompts. `batch_of` is a function
    that pads the prompts of a batch.
    """
    params = steps.ready(model, params)
    key = jax.random.key(decoding.seed)
    outputs: dict[int, Output] = {}
    for number, indices in enumerate(by_length([prompt.read for prompt in asked])):
        batch = batch_of([asked[index] for index in indices])
        static, most = _static(decoding, batch), int(batch.rules.limits.max())
        room = bucket(decoding.max_new_tokens or most)
        if decoding.num_beams > 1:
            best = jax.device_get(beams.search(model, static, params, batch, room))
            tokens, lengths = best.tokens[:, 0], best.lengths[:, 0]
            # Rows that fill the batch have no output, and a score of -inf.
            scores = np.where(lengths > 0, best.scores[:, 0], 0)
            totals = scores * np.maximum(lengths, 1) ** decoding.length_penalty
        else:
            progress = loops.begin(model, static, params, batch, room, jax.random.fold_in(key, number))
            progress = loops.advance(model, static, params, progress, most)
            tokens, lengths, totals = jax.device_get((progress.tokens, progress.lengths, progress.totals))
        for row, index in enumerate(indices):
            total = math.nan if totals is None else float(totals[row])
            outputs[index] = Output(tokens[row, : lengths[row]], total)
    return [outputs[index] for index in range(len(asked))]


def stream(
    model: Model,
    params: Any,
    prompt: Prompt | Ids,
    decoding: Decoding = Decoding(),
    end: int | None = None,
    start: int | None = None,
    prefix: bool = False,
    pieces: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the tokens that `generate` returns for one prompt, a few at a time, as int32 [tokens]. The arguments are
    those of `generate`.

    Raises:
      InputError: As for `generate`. Also if `decoding.num_beams` is above 1, because the output of a beam search is
        known only at its end.
    """
    if decoding.num_beams > 1:
        raise InputError(f"decoding.num_beams={decoding.num_beams}: beam search cannot be streamed; expected 1")
    check_specials(model, end, start, decoding)
    batch = _batch(model, [as_prompt(prompt, model, start)], decoding, end, prefix, pieces)
    static, params = _static(decoding, batch), steps.ready(model, params)
    most = int(batch.rules.limits.max())
    key = jax.random.fold_in(jax.random.key(decoding.seed), 0)
    progress, shown = loops.begin(model, static, params, batch, bucket(decoding.max_new_tokens or most), key), 0
    while True:
        tokens, lengths, ended = jax.device_get((progress.tokens, progress.lengths, progress.ended))
        yield tokens[0, shown : lengths[0]]
        shown = int(lengths[0])
        if ended[0]:
            return
        progress = loops.advance(model, static, params, progress, min(shown + CHUNK, most))


def bucket(length: int) -> int:
    """Rounds a length up to the next of 16, 24, 32, 48, 64, 96 and so on. Padding to few different lengths limits the
    number of compiled programs.
    """
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def by_length(prompts: Sequence[np.ndarray], rows: int = ROWS) -> list[list[int]]:
    """Groups prompts into batches of at most `rows` prompts of similar lengths, longest first. Returns the indices of
    the prompts in each batch.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    return [order[first : first + rows] for first in range(0, len(order), rows)]


def checked(prompt: Ids, model: Model, name: str = "prompt") -> np.ndarray:
    """Converts a sequence of token ids to int32 [tokens], and checks it.

    Args:
      prompt: token ids.
      model: model that will read them.
      name: name of the sequence in error messages.

    Raises:
      InputError: If the sequence is empty, exceeds the model's maximum length, or contains an id outside the
        vocabulary.
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
    model: Model, end: int | None = None, start: int | None = None, decoding: Decoding = Decoding()
) -> None:
    """Raises InputError if an encoder–decoder has no decoder start token (`start`), or if `start`, `end` or a token id
    in the decoding settings is outside the model's vocabulary.
    """
    if model.is_encoder_decoder and start is None:
        raise InputError("start=None: an encoder–decoder needs a decoder start token")
    named = {"end": end, "start": start}
    tokens = [(name, token) for name, token in named.items() if token is not None]
    tokens += [(f"decoding.{name}", token) for name, ids in decoding.token_ids.items() for token in ids]
    for name, token in tokens:
        if not 0 <= token < model.vocab:
            raise InputError(f"{name}={token}: the model's vocabulary has 0 to {model.vocab - 1}")


def padded(
    prompts: Sequence[np.ndarray], longest: int, left: bool = False, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads token sequences to a common length, and adds empty rows until the number of rows is a power of 2. Few
    different shapes limit the number of compiled programs.

    Args:
      prompts: token ids of each sequence, int32 [tokens].
      longest: maximum length of a row.
      left: whether to pad on the left rather than the right.
      size: length of a row. If None, the length of the longest sequence rounded up by `bucket`, at most `longest`.

    Returns:
      Token ids and mask (1 for tokens, 0 for padding), both int32 [batch, length].
    """
    length, rows = size or min(bucket(max(map(len, prompts))), longest), 1
    while rows < len(prompts):
        rows *= 2
    tokens = np.zeros((rows, length), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        place = slice(length - len(prompt), None) if left else slice(len(prompt))
        tokens[row, place], segments[row, place] = prompt, 1
    return tokens, segments


def _batch(
    model: Model,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    end: int | None,
    prefix: bool = False,
    pieces: int | None = None,
) -> Prompts:
    # A forced prefix is short, and of the same length in all calls: it needs no bucket.
    size = max(len(prompt.tokens) for prompt in prompts) if prompts[0].inputs else None
    tokens, segments = padded([prompt.tokens for prompt in prompts], model.max_length, left=True, size=size)
    # The last new token needs no position, because the model never reads it.
    used = segments.sum(1)
    most = decoding.max_new_tokens or decoding.max_length - used
    if np.min(most) < 1:
        raise InputError(
            f"decoding.max_length={decoding.max_length}: leaves no room for new tokens after {np.max(used)} tokens; "
            "expected a larger value, or decoding.max_new_tokens"
        )
    limits = np.clip(most, 0, model.max_length + 1 - used) * (np.arange(len(tokens)) < len(prompts))
    ends = decoding.eos_token_ids if decoding.eos_token_ids is not None else [] if end is None else [end]
    rules = Rules.of(
        decoding,
        [prompt.read for prompt in prompts],
        limits,
        ends,
        preceding=[prompt.tokens for prompt in prompts],
        pieces=pieces,
    )
    return Prompts(tokens, segments, rules, _inputs(prompts, model.max_length, len(tokens)), prefix)


def _inputs(prompts: Sequence[Prompt], longest: int, rows: int) -> dict[str, np.ndarray]:
    """Combines the encoder inputs of several prompts to a batch of `rows` rows, keyed by argument name. Token ids are
    left-padded to at most `longest` tokens, with their `segments` and `position_ids` added; other arrays are stacked.
    """
    found = {}
    for name in prompts[0].inputs:
        arrays = [prompt.inputs[name] for prompt in prompts]
        if arrays[0].ndim == 1:
            found[name], found["segments"] = padded(arrays, longest, left=True)
            found["position_ids"] = np.maximum(np.cumsum(found["segments"], axis=1) - 1, 0)
        else:
            found[name] = np.stack([*arrays, *[np.zeros_like(arrays[0])] * (rows - len(arrays))])
    return found


def _static(decoding: Decoding, prompts: Prompts) -> Decoding:
    """Returns decoding settings to use as a static argument of a compiled function. Settings that the function receives
    as arrays instead (seed, maximum and minimum lengths, EOS tokens) are replaced by constants, so that changing them
    does not cause a recompilation.
    """
    ends = [(token,) for token in prompts.rules.ends.tolist()]
    words = tuple(word for word in decoding.bad_words_ids if word not in ends)  # End tokens are never banned.
    return dataclasses.replace(
        decoding,
        seed=0,
        max_new_tokens=1,
        max_length=None,
        min_new_tokens=0,
        min_length=0,
        eos_token_ids=None,
        bad_words_ids=words,
    )
