"""Vectors of sentences from an encoder that was trained for them (Reimers & Gurevych 2019); it only predicts."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics import Mean
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import INPUTS

ROWS, BUCKET = 32, 32


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


@dataclasses.dataclass(frozen=True)
class SentenceEmbedding:
    """One vector a text, near to those of texts that mean the same."""

    pooling: Literal["mean", "first", "pooler"] = "mean"
    """What the vector is: the mean of all tokens' vectors, the first token's, or what the pooler makes of it."""
    normalized: bool = True
    """Whether vectors have length 1."""
    longest: int | None = None
    """Tokens of a text that are read, at most; None: as many as the model has positions."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.longest", self.longest, 3)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """None: it does not train."""
        return {}

    def check(self, model: Bert, row: Collection[str]) -> None:
        """Raises InputError: nothing trains the model for this here."""
        self._refuse()

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Bert, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Raises InputError, as `check` does."""
        self._refuse()

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """Raises InputError, as `check` does."""
        self._refuse()

    def demonstrate(self, model: Bert, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """Nothing to show of a batch."""
        return []

    def predict(self, model: Bert, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Embedded]:
        """The vector of each text, with the cosines to the others; what is too long loses its end."""
        vectors = self.embed(model, params, tokenizer, texts)
        lengths = np.linalg.norm(vectors, axis=-1)
        cosines = vectors @ vectors.T / np.maximum(np.outer(lengths, lengths), np.finfo(np.float32).tiny)
        return [
            Embedded(
                text,
                vectors[row],
                tuple((other, float(cosines[row, at])) for at, other in enumerate(texts) if at != row),
            )
            for row, text in enumerate(texts)
        ]

    def embed(self, model: Bert, params, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, float32 [n, d]."""
        longest = min(self.longest or model.positions, model.positions)
        rows = [
            np.array([tokenizer.cls_id, *tokens[: longest - 2], tokenizer.sep_id], np.int32)
            for tokens in tokenizer.encode_batch(texts)
        ]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # Rows of like lengths need little padding.
        vectors = np.zeros((len(rows), model.transformer.width), np.float32)
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            length = min(model.positions, -(-len(rows[part[-1]]) // BUCKET) * BUCKET)
            tokens = np.full((len(part), length), tokenizer.pad_id, np.int32)
            segments = np.zeros_like(tokens)
            for index, row in enumerate(part):
                tokens[index, : len(rows[row])], segments[index, : len(rows[row])] = rows[row], 1
            vectors[part] = _vectors(model, self, params, tokens, segments)
        return vectors

    def _refuse(self) -> NoReturn:
        raise InputError("objective=SentenceEmbedding: predicts only; expected one that trains, such as MaskedLM")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _vectors(model: Bert, objective: SentenceEmbedding, params, tokens, segments) -> jax.Array:
    output = model.apply({"params": params}, tokens, segments)
    if objective.pooling == "mean":
        real = jnp.float32(segments > 0)[..., None]
        vectors = (output.hidden.astype(jnp.float32) * real).sum(1) / real.sum(1)
    else:
        chosen = output.hidden if objective.pooling == "first" else output.pooled
        vectors = chosen[:, 0].astype(jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True) if objective.normalized else vectors
