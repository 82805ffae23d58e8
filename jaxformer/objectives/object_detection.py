"""Objective of object detection: predicts a set of boxes and labels, which are matched with the objects of an image
(Carion et al. 2020).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.losses.set_prediction import Costs, Targets, set_losses
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.boxes import AveragePrecision, check_installed
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.detection import DetectionModel, DetectionOutput
from jaxformer.objectives.base import Objective
from jaxformer.predictors.boxes import BoxPredictor

LOSSES = ("class_loss", "l1_loss", "giou_loss")
LAYERS = "layers/"
"""Prefix of the names of the losses of intermediate decoder layers (all layers except the last one)."""


@dataclasses.dataclass(frozen=True)
class ObjectDetection(Objective[DetectionModel]):
    """Object detection as set prediction. Each object of an image is matched with one prediction. All other predictions
    should have the class "no object".
    """

    class_weight: float = 1.0
    """Weight of the classification loss in the total loss."""
    l1_weight: float = 5.0
    """Weight of the L1 loss of the predicted boxes in the total loss."""
    giou_weight: float = 2.0
    """Weight of the generalized-IoU loss of the predicted boxes in the total loss."""
    no_object_weight: float = 0.1
    """Weight, in the classification loss, of predictions that are not matched with an object."""
    costs: Costs = Costs()
    """Weights of the terms (label, L1 and generalized IoU) in the cost that is minimised to match predictions with
    objects.
    """
    layer_losses: bool = True
    """Whether the loss also includes the predictions of intermediate decoder layers. Predictions and objects are
    matched separately for each layer.
    """
    threshold: float = 0.5
    """Minimum probability of a predicted object for `jaxformer predict` to show it."""
    average_precision: bool = True
    """Whether evaluations report the average precision, which needs pycocotools."""

    def __post_init__(self):
        fields.check(self)
        for name in ("class_weight", "l1_weight", "giou_weight", "no_object_weight"):
            fields.at_least(f"objective.{name}", getattr(self, name), 0)
        fields.within("objective.threshold", self.threshold, 0, 1)

    model_inputs = ("images", "pixel_mask")
    required = ("images", "boxes", "labels", "box_weights", "weights")
    example_task = "LabelledBoxes"

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Maps the names of the losses to their weights in the total loss."""
        own: dict[str, float] = dict(zip(LOSSES, (self.class_weight, self.l1_weight, self.giou_weight), strict=True))
        return own | {LAYERS + name: weight for name, weight in own.items()} if self.layer_losses else own

    def check(self, model: DetectionModel, row: Mapping[str, Any]) -> None:
        if not isinstance(model, DetectionModel):
            raise self.wrong_model(model, "a Detr or a Yolos")
        self.check_arrays(row)
        check_images((row["images"].capacity, *row["images"].shape), model.patch, model.channels)
        if (count := row["boxes"].capacity) > model.queries:
            raise InputError(f"data.task.max_boxes={count}: expected at most model.queries={model.queries}")
        if self.average_precision:
            check_installed()

    def apply_model(
        self, model: DetectionModel, params: Any, batch: Mapping[str, jax.Array], key: Any, **options: Any
    ) -> Any:
        """Applies the model to a batch. Only arrays that are inputs of the model are passed to it."""
        taken = {name: array for name, array in batch.items() if name in model.inputs()}
        return super().apply_model(model, params, taken, key, **options)

    def __call__(self, model: DetectionModel, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Any]:
        """Computes the losses of a batch, as weighted means.

        Args:
          model: an object detection model.
          params: model parameters.
          batch: arrays of the task `LabelledBoxes`.
          key: PRNG key for dropout. If None, the model is evaluated, and the inputs of the average precision are added
            (see `scenes`).
        """
        output = self.apply_model(model, params, batch, key, all_layers=self.layer_losses)
        targets = Targets(batch["boxes"], batch["labels"], batch["box_weights"], batch["weights"][:, 0])
        terms: dict[str, Any] = self._set_losses(model, output, targets)
        if key is None and self.average_precision:
            terms["scenes"] = scenes(output, batch)
        return terms | auxiliary(output)

    def _set_losses(self, model: DetectionModel, output: DetectionOutput, targets: Targets) -> dict[str, Mean]:
        """Computes the losses of the last decoder layer, and with `layer_losses` their sums over the layers before it,
        keyed by their names with the prefix `LAYERS`. The losses of several groups of predictions are averaged.
        """
        logits, boxes = output.layer_logits, output.layer_boxes
        if logits is None or boxes is None:
            logits, boxes = jax.tree.map(lambda last: last[None], (output.logits, output.boxes))

        def of_group(logits: jax.Array, boxes: jax.Array) -> dict[str, Mean]:
            return set_losses(logits, boxes, targets, self.costs, self.no_object_weight)

        def in_groups(predicted: jax.Array) -> jax.Array:
            layers, batch, _, size = predicted.shape
            return jnp.moveaxis(predicted.reshape(layers, batch, -1, model.queries, size), 2, 1)

        # All at once: a match takes many short steps, one after the other.
        means = jax.vmap(jax.vmap(of_group))(in_groups(logits), in_groups(boxes))
        means = jax.tree.map(lambda values: values.mean(1), means)
        losses = jax.tree.map(lambda values: values[-1], means)
        if self.layer_losses:
            losses |= {LAYERS + name: Mean(mean.sum[:-1].sum(), losses[name].weight) for name, mean in means.items()}
        return losses

    def metrics(self, model: DetectionModel) -> tuple[Metric, ...]:
        """Returns the losses, and for evaluations the average precision."""
        of_boxes = (AveragePrecision(),) if self.average_precision else ()
        return Loss.of(self.loss_weights), *(Average(name) for name in LOSSES), *of_boxes

    def predictor(self, model: DetectionModel, params: Any, tokenizer: None) -> BoxPredictor:
        return BoxPredictor(model, params, tokenizer, threshold=self.threshold)


def scenes(output: DetectionOutput, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the arrays that the metric `AveragePrecision` needs, by name: the target objects of each image, and the
    box, label and score of each prediction.
    """
    names = ("boxes", "labels", "box_weights", "crowd", "areas", "image_size", "weights")
    probabilities = jax.nn.softmax(jnp.asarray(output.logits))[..., :-1]
    return {name: batch[name] for name in names} | {
        "predicted_boxes": jnp.asarray(output.boxes),
        "predicted_labels": probabilities.argmax(-1),
        "scores": probabilities.max(-1),
    }
