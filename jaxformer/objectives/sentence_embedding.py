"""Vectors of sentences: near where texts belong together, by a contrastive loss (Reimers & Gurevych 2019).

Of the second texts of a whole batch, each first text is to be nearest to its own (Gao et al. 2021, with the loss that
van den Oord et al. 2018 call InfoNCE).
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
from jaxformer.metrics.means import Mean
from jaxformer.models.base import Model
from jaxformer.objectives.base import BatchObjective
from jaxformer.predictors.sentence_vectors import SentenceVectors, TextRows, pooled, prompt_of


@dataclasses.dataclass(frozen=True)
class SentenceEmbedding(BatchObjective[Model]):
    """One vector a text, near to those of texts that mean the same."""

    pooling: Pooling = "mean"
    """How the tokens' vectors become one: their mean, their maximum in each dimension, the first token's, the last
    token's, or the pooler's output."""
    normalized: bool = True
    """Whether vectors have length 1."""
    longest: int | None = None
    """The longest input in tokens, with [CLS] and [SEP]; None: as many as the model has positions."""
    temperature: float = 0.05
    """Temperature by which cosines are divided in training; the lower, the more the nearest wrong texts count."""
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

    def vectors(self, model: Model, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, jax.Array]:
        """The vectors of the first and of the second texts, `firsts` and `seconds`: float32 [b, c, d], of length 1.

        Args:
          model: an encoder of text.
          params: its parameters.
          batch: inputs, input_segments, input_position_ids, tokens, segments, position_ids [b, t]; weights [b, c].
          key: for dropout; None evaluates.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        count = batch["weights"].shape[1]
        firsts = TextRows(batch["inputs"], batch["input_segments"], batch["input_position_ids"], count)
        seconds = TextRows(batch["tokens"], batch["segments"], batch["position_ids"], count)
        return {
            "firsts": unit(pooled(model, params, self.pooling, firsts, keys[0])),
            "seconds": unit(pooled(model, params, self.pooling, seconds, keys[1])),
        }

    def compare(
        self, model: Model, params, vectors: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, Mean]:
        """The loss (nats), and how often the nearest of all second texts is the right one, over a batch's first texts.

        All second texts of the batch are compared, whatever devices and micro-batches their rows are in.
        """
        firsts, seconds = (vectors[name].reshape(-1, vectors[name].shape[-1]) for name in ("firsts", "seconds"))
        loss, accuracy = info_nce(firsts @ seconds.T / self.temperature, batch["weights"].reshape(-1))
        return {"loss": loss, "accuracy": accuracy}

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
