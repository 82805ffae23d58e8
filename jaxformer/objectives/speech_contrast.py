"""Objective of wav2vec 2.0: chooses the right quantized frame at masked positions (Baevski et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.losses.speech_contrast import code_perplexity, contrast
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.wav2vec2 import Wav2Vec2
from jaxformer.objectives.base import Objective
from jaxformer.objectives.ctc import check_frames


@dataclasses.dataclass(frozen=True)
class SpeechContrast(Objective[Wav2Vec2]):
    """Contrastive pretraining on speech: at each masked frame, the model chooses the quantized frame among negative
    examples. A second loss is lower if all entries of the codebooks are used equally often.
    """

    temperature: float = 0.1
    """Number by which cosine similarities are divided."""
    diversity_weight: float = 0.1
    """Weight of the loss for unequal use of the codebooks."""

    model_inputs = ("samples", "sample_mask", "masked")
    required = ("samples", "sample_mask", "masked", "negatives")
    example_task = "MaskedSpeech"

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.diversity_weight", self.diversity_weight, 0)
        if not self.temperature > 0:
            raise InputError(f"objective.temperature={self.temperature}: expected above 0")

    def check_model(self, model: Model) -> None:
        if not {"samples", "masked"} <= model.inputs().keys() or not hasattr(model, "quantizer"):
            raise self.wrong_model(model, "a Wav2Vec2")

    def check(self, model: Wav2Vec2, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        check_frames(model, row)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"contrastive": 1.0, "diversity": self.diversity_weight}

    def __call__(self, model: Wav2Vec2, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the losses of a batch and the accuracy, as weighted means over masked frames. With micro-batches,
        the diversity is that of the codes of each micro-batch.

        Args:
          model: wav2vec 2.0.
          params: model parameters.
          batch: samples, sample_mask [batch, samples]; masked [batch, frames]; negatives [batch, frames, negatives].
          key: PRNG key for dropout and the quantizer. If None, the model is evaluated.
        """
        output, masked = self.apply_model(model, params, batch, key), batch["masked"].astype(jnp.float32)
        found = contrast(output.predicted, output.quantized, output.codes, batch["negatives"], self.temperature)
        perplexity, count = code_perplexity(output.probabilities, masked), masked.sum()
        terms = {
            "contrastive": Mean.of(found.losses, masked),
            "contrastive_accuracy": Mean.of(found.right, masked),
            "diversity": Mean(count * (1 - perplexity.mean() / model.quantizer.entries), count),
            "code_perplexity": Mean(count * perplexity.mean(), count),
        }
        return terms | auxiliary(output)

    def metrics(self, model: Wav2Vec2) -> tuple[Metric, ...]:
        """Returns the total loss, its two parts, the accuracy, and the mean perplexity of the codebooks."""
        names = ("contrastive", "diversity", "code_perplexity")
        accuracy = Average("contrastive_accuracy", higher_is_better=True)
        return (Loss.of(self.loss_weights), *map(Average, names), accuracy)
