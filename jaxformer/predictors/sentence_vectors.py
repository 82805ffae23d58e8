"""Computes one vector per text, such as a sentence, with a text encoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tasks import layouts
from jaxformer.errors import InputError
from jaxformer.layers.pooling import Pooling, pool, segments_of
from jaxformer.losses.contrastive import unit
from jaxformer.models.base import Model, ModelOutput
from jaxformer.predictors.base import Embeds, Predictor
from jaxformer.predictors.padding import padded, stacked
from jaxformer.predictors.vectors import Embedded, with_cosines

MAX_EXAMPLES = 4
"""Maximum number of held-out text pairs whose similarity `demonstrate` shows."""


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceVectors(Predictor[Model], Embeds):
    """Predictor that computes one vector per text."""

    pairs: Callable[[Model, Any, Mapping[str, np.ndarray]], Sequence[jax.Array]]
    """Function (model, params, batch) that returns the vectors of the first texts and of the second texts of a held-out
    batch, float32 [texts, embed] each. Only used for demonstrations.
    """
    pooling: Pooling = "mean"
    """Method that combines the token vectors of a text to one vector. This field and the following ones have the same
    meaning as in `SentenceEmbedding`.
    """
    normalized: bool = True
    longest: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt_name: str | None = None
    include_prompt: bool = True

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Computes the cosine similarity of the first text pairs in a held-out batch. Returns one entry per pair, with
        the cosine and both texts.
        """
        batch = {name: np.asarray(array)[:MAX_EXAMPLES] for name, array in batch.items()}
        firsts, seconds = (np.asarray(part) for part in self.pairs(self.model, self.params, batch))
        count, lines = batch["weights"].shape[1], []
        for row, pair in np.argwhere(batch["weights"] > 0)[:MAX_EXAMPLES]:
            sides = ("inputs", "input_segments"), ("tokens", "segments")
            texts = [batch[tokens][row][batch[segments][row] == pair + 1] for tokens, segments in sides]
            shown = [self.tokenizer.decode(text[~self.tokenizer.is_special[text]]) for text in texts]
            cosine = firsts[row * count + pair] @ seconds[row * count + pair]
            lines.append(f"{cosine:6.3f}  {shown[0]}\n        {shown[1]}")
        return lines

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Adds the default prompt to texts, and converts them to the arguments of the model. Long texts are
        truncated.
        """
        prompt = prompt_of(self.prompts, self.default_prompt_name, "prompt_name")
        return stacked(self._rows([prompt + text for text in texts]))

    def predict(self, texts: Sequence[str]) -> list[Embedded]:
        """Computes the vector of each text, and its cosine similarities to the other texts. Long texts are
        truncated.
        """
        return with_cosines(texts, self.embed(texts))

    def embed(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """Computes the vectors of texts, float32 [texts, embed].

        Args:
          texts: Texts to embed. Long texts are truncated.
          prompt_name: Name of the prompt in `prompts` to put before each text. If None, the default prompt.

        Raises:
          InputError: If there is no prompt with this name.
        """
        prompt = prompt_of(
            self.prompts, self.default_prompt_name if prompt_name is None else prompt_name, "prompt_name"
        )
        rows = self._rows([prompt + text for text in texts])
        skipped = 0
        if prompt and not self.include_prompt:
            [beginning] = self._rows([prompt])
            skipped = len(beginning) - bool(self.tokenizer.is_special[beginning[-1]])
        vectors: list[np.ndarray] = [np.empty(0)] * len(rows)
        for places, batch in padded(rows, self.model.max_length):
            how = self.pooling, self.normalized
            found = _vectors(self.model, self.params, how, batch["tokens"], batch["segments"], skipped)
            for place, vector in zip(places, np.asarray(found), strict=False):
                vectors[place] = vector
        return np.stack(vectors)

    def _rows(self, texts: Sequence[str]) -> list[np.ndarray]:
        longest = min(self.longest or self.model.max_length, self.model.max_length)
        encoded = self.tokenizer.encode_batch(texts)
        return [layouts.lay_out(self.tokenizer, "encoder", longest, tokens).tokens for tokens in encoded]


def prompt_of(prompts: Sequence[tuple[str, str]], name: str | None, field: str) -> str:
    """Returns the text of the prompt with the given name. Returns an empty string if the name is None.

    Args:
      prompts: pairs of a name and a text.
      name: name of the prompt.
      field: config field that contains the name, for error messages.

    Raises:
      InputError: If there is no prompt with this name.
    """
    if name is None:
        return ""
    if name not in dict(prompts):
        raise InputError(f"{field}={name!r}: expected one of objective.prompts: {', '.join(dict(prompts)) or 'none'}")
    return dict(prompts)[name]


class TextRows(NamedTuple):
    """Batch rows of tokens, in which each row contains one or more texts."""

    tokens: jax.Array
    """Token ids, integers [batch, length]."""
    segments: jax.Array
    """Which text of its row each token belongs to: 1 for the first text, 2 for the second, ..., and 0 for padding.
    Integers [batch, length].
    """
    position_ids: jax.Array | None = None
    """Position of each token, integers [batch, length]. If None, positions are 0, 1, 2, ... in each row."""
    count: int = 1
    """Maximum number of texts per row."""


def pooled(
    model: Model, params, pooling: Pooling, rows: TextRows, key: jax.Array | None = None, skipped: jax.Array | int = 0
) -> tuple[jax.Array, ModelOutput]:
    """Computes one vector for each text, float32 [batch, texts per row, embed]. Also returns the output of the model.

    Args:
      model: Text encoder.
      params: Parameters of the model.
      pooling: Method that combines the vectors of the tokens of a text.
      rows: Rows of texts.
      key: Random key for dropout. If None, dropout is disabled.
      skipped: Number of tokens at the start of a row to leave out of the pooling.
    """
    belongs = segments_of(rows.segments, rows.count)
    arrays = {"segments": rows.segments, "position_ids": rows.position_ids, "cls_positions": belongs.argmax(-1)}
    arrays = {name: array for name, array in arrays.items() if name in model.inputs()}
    rngs = None if key is None else {"dropout": key}
    output = model.apply({"params": params}, rows.tokens, **arrays, train=key is not None, rngs=rngs)
    return _pool(output, pooling, belongs, skipped), output


def embedded(pooling: Pooling, normalized: bool, output: ModelOutput, mask: jax.Array) -> jax.Array:
    """Computes one vector per batch row from the encoder output, float32 [batch, embed].

    Args:
      pooling: method that combines the vectors of tokens.
      normalized: whether to normalize the result to length 1.
      output: output of the encoder.
      mask: 1 for tokens, 0 for padding, [batch, length].
    """
    vectors = _pool(output, pooling, mask[:, None] > 0)[:, 0]
    return unit(vectors) if normalized else vectors


def _pool(output: ModelOutput, pooling: Pooling, belongs: jax.Array, skipped: jax.Array | int = 0) -> jax.Array:
    """Combines the token vectors of each text to one vector, float32 [batch, texts per row, embed].

    Args:
      output: output of the encoder.
      pooling: method that combines the vectors.
      belongs: whether each token belongs to each text, boolean [batch, texts per row, length].
      skipped: number of tokens at the start of a row to leave out.
    """
    vectors = output.pooled if pooling == "pooler" else output.hidden
    if vectors is None:
        raise ValueError(f"the output of the model has nothing for pooling={pooling}")
    if pooling == "pooler":
        return vectors.astype(jnp.float32)
    belongs = belongs & (jnp.arange(belongs.shape[2]) >= skipped)
    return pool(vectors.astype(jnp.float32), pooling, belongs)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _vectors(model: Model, params, how: tuple[Pooling, bool], tokens, segments, skipped) -> jax.Array:
    pooling, normalized = how
    vectors, _ = pooled(model, params, pooling, TextRows(tokens, segments), skipped=skipped)
    return unit(vectors[:, 0]) if normalized else vectors[:, 0]
