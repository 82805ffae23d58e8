"""Scores given continuations of prompts by their log-probability."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tokenizers.tokenizer import Ids
from jaxformer.decoding.generate import by_length, check_specials, checked, padded
from jaxformer.decoding.rules import without_pieces
from jaxformer.errors import InputError
from jaxformer.models.base import Model
from jaxformer.parallel import sharding

CHUNK = 1 << 25
"""Approximate maximum number of logits (rows × tokens × vocabulary size) to compute at once, which limits memory use.
"""


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-probability of a given continuation of a prompt."""

    log_probability: float
    """Sum of the log-probabilities of the continuation's tokens, in nats."""
    tokens: int
    """Number of tokens in the continuation."""
    greedy: bool
    """Whether greedy decoding would generate this continuation: each of its tokens is the most likely one after the
    tokens before it.
    """

    @property
    def per_token(self) -> float:
        """Mean log-probability of the continuation's tokens, in nats."""
        return self.log_probability / self.tokens


def score(
    model: Model,
    params: Any,
    prompts: Sequence[Ids],
    continuations: Sequence[Ids],
    start: int | None = None,
    prefix: bool = False,
    pieces: int | None = None,
) -> list[Score]:
    """Computes the log-probability of each continuation given its prompt. Pairs of similar lengths are computed in one
    batch.

    Args:
      model: `Gpt` or `EncoderDecoder`.
      params: parameters of the model.
      prompts: token ids of each prompt.
      continuations: token ids of the continuation of each prompt.
      start: id of the decoder start token, for an `EncoderDecoder`.
      prefix: whether attention within a prompt is bidirectional, for a `Gpt` that is a prefix language model.
      pieces: vocabulary size of the tokenizer, if the model has more ids. For `Score.greedy`, a continuation is
        compared only with tokens below this id, because others are never generated. If None, it is compared with all.

    Returns:
      Score of each continuation, in the order of the prompts.

    Raises:
      InputError: If a prompt or a continuation is empty, exceeds the model's maximum length, or contains an id outside
        the vocabulary.
    """
    pairs = [
        (checked(prompt, model), checked(continuation, model, "continuation"))
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    check_specials(model, start=start)
    scores: dict[int, Score] = {}
    for indices in by_length([np.concatenate(pair) for pair in pairs]):
        some = [pairs[index] for index in indices]
        batch = _answered(model, some, start) if model.is_encoder_decoder else _continued(model, some, prefix)
        values, hits = jax.device_get(_score(model, params, batch, pieces))
        for row, index in enumerate(indices):
            count = len(pairs[index][1])
            scores[index] = Score(
                float(values[row, :count].sum(dtype=np.float64)), count, bool(hits[row, :count].all())
            )
    return [scores[index] for index in range(len(pairs))]


def _continued(model: Model, pairs: Sequence[tuple[np.ndarray, np.ndarray]], prefix: bool) -> dict[str, Any]:
    """Builds the inputs of `_score` for a decoder-only model. Each row consists of a prompt and its continuation,
    without the continuation's last token, because no token is predicted after it.
    """
    rows = [np.concatenate(pair)[:-1] for pair in pairs]
    if (longest := max(map(len, rows))) > model.max_length:
        raise InputError(
            f"a prompt and a continuation of {longest + 1} tokens: the model has positions for {model.max_length}"
        )
    tokens, segments = padded(rows, model.max_length)
    targets, _ = padded([continuation for _, continuation in pairs], model.max_length)
    lengths = np.ones((len(tokens), 1), np.int32)
    lengths[: len(pairs), 0] = [len(prompt) for prompt, _ in pairs]
    inputs = {"tokens": tokens, "segments": segments}
    if prefix:
        inputs["prefix"] = np.arange(tokens.shape[1]) < lengths
    at = np.minimum(lengths - 1 + np.arange(targets.shape[1]), tokens.shape[1] - 1)
    return {"inputs": inputs, "at": at, "targets": targets}


def _answered(model: Model, pairs: Sequence[tuple[np.ndarray, np.ndarray]], start: int | None) -> dict[str, Any]:
    """Builds the inputs of `_score` for an encoder–decoder. The encoder reads the prompts, and the decoder reads the
    start token followed by the continuations.
    """
    inputs, input_segments = padded([prompt for prompt, _ in pairs], model.max_length)
    targets, segments = padded([answer for _, answer in pairs], model.max_length)
    tokens = np.concatenate([np.full_like(targets[:, :1], start), targets[:, :-1]], axis=1)
    names = {"inputs": inputs, "tokens": tokens, "input_segments": input_segments, "segments": segments}
    return {"inputs": names, "at": np.broadcast_to(np.arange(targets.shape[1]), targets.shape), "targets": targets}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(model: Model, params: Any, batch: Any, pieces: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Computes the log-probabilities of the target tokens of a batch.

    Args:
      model: the model.
      params: parameters of the model.
      batch: dict of `inputs` (arguments of the model), `targets` [batch, predictions] and `at` (index in each row of
        the token after which each target is predicted, [batch, predictions]).
      pieces: see `score`.

    Returns:
      Log-probability of each target, float32 [batch, predictions], and whether it is the most likely token, boolean
      [batch, predictions].
    """
    output = model.apply({"params": params}, **{k: sharding.constrain(v, "bt") for k, v in batch["inputs"].items()})
    hidden = jnp.take_along_axis(output.hidden, batch["at"][..., None], axis=1)
    rows, length = batch["targets"].shape
    size = max(1, min(length, CHUNK // (rows * model.vocab)))
    parts = -(-length // size)

    def split(array):  # [b, m, ...] -> [part, b, size, ...]; the sharding of the rows is kept
        pad = [(0, 0), (0, parts * size - length)] + [(0, 0)] * (array.ndim - 2)
        return jnp.moveaxis(jnp.pad(array, pad).reshape(rows, parts, size, *array.shape[2:]), 1, 0)

    def one(part):
        hidden, targets = part
        logits = output.lm_head.logits(hidden)
        wanted = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return wanted - jax.nn.logsumexp(logits, -1), wanted >= without_pieces(logits, pieces).max(-1)

    both = jax.lax.map(one, (split(hidden), split(batch["targets"])))
    return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1).reshape(rows, -1)[:, :length], both)
