"""Image classification. Also trains on images that are mixed from two images (Dosovitskiy et al. 2021; Mixup, Zhang et
al. 2018).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.labels import LabelScores, label_counts
from jaxformer.metrics.means import Mean, auxiliary, total
from jaxformer.models.vit import Vit
from jaxformer.objectives.base import Objective
from jaxformer.predictors.image_labels import ImageLabels

TOP = 5
"""Number k of the metric `top_5_accuracy`: an image counts as correct if its label is among the k classes with the
highest logits.
"""
MOST_SCORED = 100
"""Maximum number of labels of a model for which an evaluation reports scores per label. With more labels, it reports
only scores over all labels.
"""


@dataclasses.dataclass(frozen=True)
class ImageClassification(Objective[Vit]):
    """Image classification by softmax cross-entropy. The target of an image that is mixed from two images consists of
    the labels of both, weighted by the shares of the two images.
    """

    label_smoothing: float = 0.0
    """Share of the target probability that is distributed uniformly over the labels in training (Szegedy et al. 2016).
    """

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.label_smoothing", self.label_smoothing, 0, 1, below=True)

    model_inputs = ("images",)
    required = ("images", "labels")
    example_task = "LabelledImages"

    @property
    def problem_type(self) -> str:
        """Value of `problem_type` in the config.json of an exported Hugging Face model."""
        return "single_label_classification"

    def check(self, model: Vit, row: Mapping[str, Any]) -> None:
        if not getattr(model, "labels", ()) or "images" not in model.inputs():
            kind = type(model).__name__ + " without labels" * (getattr(model, "labels", None) == ())
            raise InputError(f"objective=ImageClassification: needs a Vit with labels; the model is a {kind}")
        self.check_arrays(row)
        check_images((row["images"].capacity, *row["images"].shape), model.patch, model.channels)

    def __call__(self, model: Vit, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats) and the accuracies of a batch, as weighted means.

        Args:
          model: a ViT with labels.
          params: model parameters.
          batch: images [batch, height, width, channels]; labels, integers [batch, 2], of the two images that each image
            is mixed from; weights [batch, 2], the shares of the two images.
          key: PRNG key for dropout. If None, the model is evaluated without label smoothing, and the result also
            contains the counts for the scores per label (`label_counts`).
        """
        output = self.apply_model(model, params, batch, key, pooled_only=True)
        labels, shares = batch["labels"], batch["weights"]
        log_probabilities = logits = self.log_probabilities(output, labels)
        losses = -jnp.sum(jnp.take_along_axis(log_probabilities, labels, -1) * shares, -1)
        weights = shares.sum(-1)  # 1 for each image, 0 for none.
        if key is not None and self.label_smoothing:
            uniform = -log_probabilities.mean(-1) * weights
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * uniform
        # Of a mixed image the one is asked for that has the larger part.
        target = jnp.take_along_axis(labels, jnp.argmax(shares, -1)[:, None], -1)
        above = jnp.sum(logits > jnp.take_along_axis(logits, target, -1), -1)
        means = {"loss": Mean(total(losses), total(weights)), "accuracy": Mean.of(above < 1, weights)}
        means |= auxiliary(output)
        if len(model.labels) > TOP:
            means["top_5_accuracy"] = Mean.of(above < TOP, weights)
        if key is None and len(model.labels) <= MOST_SCORED:
            targets, guesses = (jax.nn.one_hot(x, len(model.labels)) for x in (target[:, 0], jnp.argmax(logits, -1)))
            means |= label_counts(model.labels, targets, guesses, weights)
        return means

    def log_probabilities(self, output: Any, labels: jax.Array) -> jax.Array:
        """Computes the log-probability of each class, [batch, classes].

        Args:
          output: output of the model.
          labels: labels of the batch, [batch, 2]. Not used for images; the subclass for videos needs their number.
        """
        return jax.nn.log_softmax(output.logits)

    def metrics(self, model: Vit) -> tuple[Metric, ...]:
        """Returns the loss and the accuracies, and for evaluations also scores per label. The score `recall/NAME` is
        the accuracy on the images with the label NAME.
        """
        accuracies = ("accuracy", "top_5_accuracy")[: 2 if len(model.labels) > TOP else 1]
        of_labels = (LabelScores(model.labels),) if len(model.labels) <= MOST_SCORED else ()
        return Loss(), *(Average(name, higher_is_better=True) for name in accuracies), *of_labels

    def predictor(self, model: Vit, params: Any, tokenizer: None) -> ImageLabels:
        return ImageLabels(model, params, tokenizer)
