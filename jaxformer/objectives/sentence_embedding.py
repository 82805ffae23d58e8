"""Contrastive learning of sentence embeddings (Reimers & Gurevych 2019).

The loss makes the vector of the first text of each pair more similar to the vector of its second text than to the
vectors of the second texts of all other pairs in the batch (Gao et al. 2021, with the InfoNCE loss of van den Oord et
al. 2018).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.layers.pooling import Pooling
from jaxformer.losses.contrastive import info_nce, unit
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.objectives.base import BatchObjective
from jaxformer.predictors.sentence_vectors import SentenceVectors, TextRows, pooled, prompt_of


@dataclasses.dataclass(frozen=True)
class SentenceEmbedding(BatchObjective[Model]):
    """Sentence embeddings: embeds each text as one vector. Texts with the same meaning should have similar vectors."""

    pooling: Pooling = "mean"
    """How the token vectors of a text are reduced to one vector: the mean or the maximum per dimension, the vector of
    the first or the last token, or the output of the model's pooler.
    """
    normalized: bool = True
    """Whether the vectors that `jaxformer predict` returns are normalized to an L2 norm of 1. Training always
    normalizes.
    """
    longest: int | None = None
    """Maximum number of input tokens, including [CLS] and [SEP]. If None, the model's maximum length."""
    temperature: float = 0.05
    """Temperature that divides the cosine similarities in training. A lower temperature puts more weight on the most
    similar negatives."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Named prompts for embedding texts, as pairs (name, prompt). A request chooses one by its name. The prompt is
    prepended to each text to embed, but not to training texts.
    """
    default_prompt_name: str | None = None
    """Name of the prompt that is used if a request does not choose one. If None, no prompt is used."""
    include_prompt: bool = True
    """Whether pooling includes the tokens of the prompt and the [CLS] token before it. If False, only the tokens of the
    text after the prompt are pooled.
    """

    def __post_init__(self):
        fields.check(self)
        if self.pooling == "none":
            raise InputError("objective.pooling=none: expected one vector per text: mean, max, first, last or pooler")
        fields.at_least("objective.longest", self.longest, 3)
        if not self.temperature > 0:
            raise InputError(f"objective.temperature={self.temperature}: expected above 0")
        prompt_of(self.prompts, self.default_prompt_name, "objective.default_prompt_name")

    model_inputs = ("tokens", "segments", "position_ids")
    required = ("inputs", "tokens", "weights")
    example_task = "TextPairs"

    def check_model(self, model: Model) -> None:
        if model.is_generative or "tokens" not in model.inputs():
            raise self.wrong_model(model, "a Bert or another encoder")
        if self.pooling == "pooler" and not model.has_pooler:
            raise InputError("objective.pooling=pooler: the model has none; expected mean, max, first or last")

    def check(self, model: Model, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        if "targets" in row:
            raise InputError("objective=SentenceEmbedding: the task's rows are for an encoder-decoder; use TextPairs")

    def vectors(self, model: Model, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Any]:
        """Computes the vectors of both texts of each pair. Returns a dict with `firsts` and `seconds`, float32
        [batch, pairs, embed] with an L2 norm of 1, and the model's auxiliary losses.

        The auxiliary losses, such as the load balance of experts, are averaged over both texts.

        Args:
          model: a text encoder.
          params: model parameters.
          batch: inputs, input_segments, input_position_ids (first texts), tokens, segments, position_ids (second texts)
            [batch, length]; weights [batch, pairs]. A row may contain several pairs.
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        count = batch["weights"].shape[1]
        firsts = TextRows(batch["inputs"], batch["input_segments"], batch["input_position_ids"], count)
        seconds = TextRows(batch["tokens"], batch["segments"], batch["position_ids"], count)
        first_vectors, first_output = pooled(model, params, self.pooling, firsts, keys[0])
        second_vectors, second_output = pooled(model, params, self.pooling, seconds, keys[1])
        means = {name: mean.merged(auxiliary(second_output)[name]) for name, mean in auxiliary(first_output).items()}
        return {"firsts": unit(first_vectors), "seconds": unit(second_vectors), **means}

    def compare(
        self, model: Model, params, vectors: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, Mean]:
        """Computes the loss (nats), and the accuracy of retrieving the second text of each pair within the batch.

        The candidates are the second texts of the whole batch, including those on other devices and in other
        micro-batches.
        """
        firsts, seconds = (vectors[name].reshape(-1, vectors[name].shape[-1]) for name in ("firsts", "seconds"))
        loss, accuracy = info_nce(firsts @ seconds.T / self.temperature, batch["weights"].reshape(-1))
        means = {name: part for name, part in vectors.items() if isinstance(part, Mean)}
        return {"loss": loss, "accuracy": accuracy, **means}

    def metrics(self, model: Model) -> tuple[Metric, ...]:
        return Loss(), Average("accuracy", higher_is_better=True)

    def predictor(self, model: Model, params: Any, tokenizer: Tokenizer) -> SentenceVectors:
        return SentenceVectors(
            model,
            params,
            tokenizer,
            pairs=functools.partial(_evaluated, self),
            pooling=self.pooling,
            normalized=self.normalized,
            longest=self.longest,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            include_prompt=self.include_prompt,
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluated(objective: SentenceEmbedding, model: Model, params, batch) -> list[jax.Array]:
    vectors = objective.vectors(model, params, batch)
    return [vectors[name].reshape(-1, vectors[name].shape[-1]) for name in ("firsts", "seconds")]
