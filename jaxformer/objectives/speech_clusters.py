"""Objective of HuBERT: predicts the clusters of masked frames (Hsu et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.wav2vec2 import Hubert
from jaxformer.objectives.base import Objective
from jaxformer.objectives.ctc import check_frames


@dataclasses.dataclass(frozen=True)
class SpeechClusters(Objective[Hubert]):
    """Masked prediction of clusters: the cross-entropy of the cluster of each masked frame."""

    unmasked_weight: float = 0.0
    """Weight of the loss of frames that are not masked."""

    model_inputs = ("samples", "sample_mask", "masked")
    required = ("samples", "sample_mask", "masked", "targets", "weights")
    example_task = "ClusteredSpeech"
    in_transformers = False  # Its class there has no head for clusters.

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.unmasked_weight", self.unmasked_weight, 0)

    def check_model(self, model: Model) -> None:
        if not {"samples", "masked"} <= model.inputs().keys() or not hasattr(model, "clusters"):
            raise self.wrong_model(model, "a Hubert")

    def check(self, model: Hubert, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        check_frames(model, row)
        frames = row["masked"].capacity
        if row["targets"].capacity != frames:
            raise InputError(
                f"data.task: rows have {row['targets'].capacity} clusters; expected {frames}, one per frame"
            )

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"masked": 1.0, "unmasked": self.unmasked_weight}

    def __call__(self, model: Hubert, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the cross-entropy of masked and of other frames in nats, and the accuracy at masked frames, as
        weighted means.

        Args:
          model: HuBERT.
          params: model parameters.
          batch: samples, sample_mask [batch, samples]; masked, targets (clusters) and weights (1 for frames with a
            cluster) [batch, frames].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        output, targets = self.apply_model(model, params, batch, key), batch["targets"]
        real = batch["weights"] * (jnp.arange(targets.shape[1]) < output.frames[:, None])
        masked = batch["masked"] * real
        loss, accuracy = class_cross_entropy(output.logits, targets, masked)
        unmasked, _ = class_cross_entropy(output.logits, targets, real - masked)
        return {"masked": loss, "unmasked": unmasked, "accuracy": accuracy} | auxiliary(output)

    def metrics(self, model: Hubert) -> tuple[Metric, ...]:
        """Returns the total loss, the losses of masked and of other frames, and the accuracy at masked frames."""
        accuracy = Average("accuracy", higher_is_better=True)
        return Loss.of(self.loss_weights), Average("masked"), Average("unmasked"), accuracy
