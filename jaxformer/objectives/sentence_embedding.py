"""Vectors of sentences: near where texts belong together, by a contrastive loss (Reimers & Gurevych 2019).

Of the second texts of a whole batch, each first text is to be nearest to its own (Gao et al. 2021, with the loss that
van den Oord et al. 2018 call InfoNCE).
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.tasks import layouts
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.layers.pooling import Pooling, pool, segments_of
from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.means import Mean
from jaxformer.models.base import Model, ModelOutput
from jaxformer.predictors.padding import padded, stacked

NAMES = ("loss", "accuracy")
SHOWN = 4
"""Pairs of a demonstration."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A text, its vector, and how near the vectors of the other texts are."""

    text: str
    """The text as it was given."""
    vector: np.ndarray
    """float32 [d]."""
    cosines: tuple[tuple[str, float], ...] = ()
    """The other texts in their order, each with the cosine between both vectors."""

    def __str__(self) -> str:
        if not self.cosines:
            return " ".join(f"{number:.6f}" for number in self.vector)
        return "\n".join([self.text, *(f"  {cosine:6.3f}  {other}" for other, cosine in self.cosines)])


def with_cosines(names: Sequence[str], vectors: np.ndarray) -> list[Embedded]:
    """Each vector of [n, d] with its name, and with the cosines between it and the others."""
    lengths = np.linalg.norm(vectors, axis=-1)
    cosines = vectors @ vectors.T / np.maximum(np.outer(lengths, lengths), np.finfo(np.float32).tiny)
    return [
        Embedded(
            name,
            vectors[row],
            tuple((other, float(cosines[row, at])) for at, other in enumerate(names) if at != row),
        )
        for row, name in enumerate(names)
    ]


@dataclasses.dataclass(frozen=True)
class SentenceEmbedding:
    """One vector a text, near to those of texts that mean the same."""

    pooling: Pooling = "mean"
    """How the tokens' vectors become one: their mean, their maximum in each dimension, the first token's, the last
    token's, or the pooler's output."""
    normalized: bool = True
    """Whether vectors have length 1."""
    longest: int | None = None
    """The longest input in tokens, with [CLS] and [SEP]; None: as many as the model has positions."""
    temperature: float = 0.05
    """What cosines are divided by in training; the lower, the more the nearest wrong texts count."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Names and texts of prompts. A prompt is put before each text that is embedded; the training data has its own."""
    default_prompt_name: str | None = None
    """The prompt that is used where none is asked for; None: no prompt."""
    include_prompt: bool = True
    """Whether the pooling reads the tokens of the prompt, and [CLS] before it."""

    def __post_init__(self):
        fields.check(self)
        if self.pooling == "none":
            raise InputError("objective.pooling=none: expected one vector a text: mean, max, first, last or pooler")
        fields.at_least("objective.longest", self.longest, 3)
        if not self.temperature > 0:
            raise InputError(f"objective.temperature={self.temperature}: expected above 0")
        self._prompt(self.default_prompt_name, "objective.default_prompt_name")

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Model, row: Collection[str]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        if model.is_generative or "tokens" not in model.inputs():
            kind = type(model).__name__
            raise InputError(f"objective=SentenceEmbedding: needs a Bert or another encoder; the model is a {kind}")
        if self.pooling == "pooler" and not model.has_pooler:
            raise InputError("objective.pooling=pooler: the model has none; expected mean, max, first or last")
        if missing := [name for name in ("inputs", "tokens", "weights") if name not in row]:
            raise InputError(f"objective=SentenceEmbedding: the task's rows have no {missing[0]}; use TextPairs")
        if "targets" in row:
            raise InputError("objective=SentenceEmbedding: the task's rows are for an encoder-decoder; use TextPairs")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes: the second texts."""
        return {name: batch[name] for name in ("tokens", "segments", "position_ids") if name in batch}

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats), and how often the nearest of all second texts is the right one, over a batch's first texts.

        All second texts of the batch are there to be told apart, whatever devices their rows lie on; with
        `optimizer.accumulate`, those of a micro-batch.

        Args:
          model: an encoder of text.
          params: its parameters.
          batch: inputs, input_segments, input_position_ids, tokens, segments, position_ids [b, t]; weights [b, c].
          key: for dropout; None evaluates.
        """
        weights = batch["weights"].reshape(-1)
        firsts, seconds = self._both(model, params, batch, key)
        scores = jnp.where(weights > 0, firsts @ seconds.T / self.temperature, jnp.finfo(jnp.float32).min)
        loss, accuracy = class_cross_entropy(scores, jnp.arange(len(weights)), weights)
        return {"loss": loss, "accuracy": accuracy}

    def _both(self, model: Model, params, batch: Mapping[str, jax.Array], key) -> list[jax.Array]:
        """The vectors of the first texts and of the second ones, float32 [b · c, d] each, of length 1."""
        keys = (None, None) if key is None else jax.random.split(key)
        sides = [("inputs", "input_segments", "input_position_ids"), ("tokens", "segments", "position_ids")]
        count = batch["weights"].shape[1]
        vectors = [
            pooled(model, params, self.pooling, *(batch[name] for name in names), count, key)
            for names, key in zip(sides, keys, strict=True)
        ]
        return [_unit(part.reshape(-1, part.shape[-1])) for part in vectors]

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means."""
        return {name: float(means[name].value) for name in NAMES}

    def demonstrate(self, model: Model, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out pairs, and how near their vectors are."""
        batch = {name: np.asarray(array)[:SHOWN] for name, array in batch.items()}
        firsts, seconds = (np.asarray(part) for part in _evaluated(model, self, params, batch))
        count, lines = batch["weights"].shape[1], []
        for row, pair in np.argwhere(batch["weights"] > 0)[:SHOWN]:
            sides = ("inputs", "input_segments"), ("tokens", "segments")
            texts = [batch[tokens][row][batch[segments][row] == pair + 1] for tokens, segments in sides]
            shown = [tokenizer.decode(text[~tokenizer.is_special[text]]) for text in texts]
            cosine = firsts[row * count + pair] @ seconds[row * count + pair]
            lines.append(f"{cosine:6.3f}  {shown[0]}\n        {shown[1]}")
        return lines

    def encode(self, model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the texts after the default prompt; what is too long loses its end."""
        prompt = self._prompt(self.default_prompt_name, "prompt_name")
        return stacked(self._rows(model, tokenizer, [prompt + text for text in texts]))

    def predict(self, model: Model, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Embedded]:
        """The vector of each text, with the cosines to the others; what is too long loses its end."""
        return with_cosines(texts, self.embed(model, params, tokenizer, texts))

    def embed(
        self, model: Model, params, tokenizer: Tokenizer, texts: Sequence[str], prompt_name: str | None = None
    ) -> np.ndarray:
        """Computes the vectors of texts, float32 [n, d].

        Args:
          model: an encoder of text.
          params: its parameters.
          tokenizer: the texts'.
          texts: what to embed; what is too long loses its end.
          prompt_name: one of `prompts`, put before each text; None: the default one.

        Raises:
          InputError: no prompt has this name.
        """
        prompt = self._prompt(self.default_prompt_name if prompt_name is None else prompt_name, "prompt_name")
        rows = self._rows(model, tokenizer, [prompt + text for text in texts])
        skipped = 0
        if prompt and not self.include_prompt:
            [beginning] = self._rows(model, tokenizer, [prompt])
            skipped = len(beginning) - bool(tokenizer.is_special[beginning[-1]])
        vectors: list[np.ndarray] = [np.empty(0)] * len(rows)
        for places, batch in padded(rows, model.max_length):
            for place, vector in zip(
                places, np.asarray(_vectors(model, self, params, **batch, skipped=skipped)), strict=False
            ):
                vectors[place] = vector
        return np.stack(vectors)

    def _rows(self, model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        longest = min(self.longest or model.max_length, model.max_length)
        encoded = tokenizer.encode_batch(texts)
        return [layouts.lay_out(tokenizer, "encoder", longest, tokens).tokens for tokens in encoded]

    def _prompt(self, name: str | None, field: str) -> str:
        prompts = dict(self.prompts)
        if name is None:
            return ""
        if name not in prompts:
            raise InputError(f"{field}={name!r}: expected one of objective.prompts: {', '.join(prompts) or 'none'}")
        return prompts[name]


def pooled(
    model: Model, params, pooling: Pooling, tokens, segments, position_ids, count: int, key=None, skipped: int = 0
) -> jax.Array:
    """Computes one vector for each of the `count` texts that a row may have, float32 [b, c, d].

    Args:
      model: a BERT.
      params: its parameters.
      pooling: as of `SentenceEmbedding`.
      tokens: integers [b, t].
      segments: integers [b, t]: the c-th text of a row has number c + 1, 0 is padding.
      position_ids: integers [b, t], or None: 0, 1, 2, ...
      count: c.
      key: for dropout; None evaluates.
      skipped: tokens at the beginning of a row that the pooling does not read.
    """
    belongs = segments_of(segments, count)
    arrays = {"segments": segments, "position_ids": position_ids, "cls_positions": belongs.argmax(-1)}
    arrays = {name: array for name, array in arrays.items() if name in model.inputs()}
    rngs = None if key is None else {"dropout": key}
    output = model.apply({"params": params}, tokens, **arrays, train=key is not None, rngs=rngs)
    return _pool(output, pooling, belongs, skipped)


def embedded(objective: SentenceEmbedding, output: ModelOutput, mask: jax.Array) -> jax.Array:
    """The vector of each row's text, float32 [b, d], from the output of an encoder; mask [b, t] is 1 for tokens."""
    vectors = _pool(output, objective.pooling, mask[:, None] > 0)[:, 0]
    return _unit(vectors) if objective.normalized else vectors


def _pool(output: ModelOutput, pooling: str, belongs: jax.Array, skipped: jax.Array | int = 0) -> jax.Array:
    """One vector for each text, float32 [b, c, d], of the tokens that belong to it, boolean [b, c, t]."""
    if pooling == "pooler":
        return output.pooled.astype(jnp.float32)
    belongs = belongs & (jnp.arange(belongs.shape[2]) >= skipped)
    return pool(output.hidden.astype(jnp.float32), pooling, belongs)


def _unit(vectors: jax.Array) -> jax.Array:
    # Of rows without a text too: a vector of zeros has no direction, and its gradient would be no number.
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, -1, keepdims=True), 1e-24))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _vectors(model: Model, objective: SentenceEmbedding, params, tokens, segments, skipped) -> jax.Array:
    vectors = pooled(model, params, objective.pooling, tokens, segments, None, 1, skipped=skipped)[:, 0]
    return _unit(vectors) if objective.normalized else vectors


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluated(model: Model, objective: SentenceEmbedding, params, batch) -> list[jax.Array]:
    return objective._both(model, params, batch, None)
