"""Objective of semantic segmentation: predicts a label for each pixel (Strudel et al. 2021; Xie et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.resizing import resized
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.metrics.segmentation import MeanIou
from jaxformer.objectives.base import Objective
from jaxformer.predictors.segmentation import Segmentations

IGNORED = 255
"""Value of pixels without a label in a target mask. The loss and the metrics ignore them."""


@dataclasses.dataclass(frozen=True)
class SemanticSegmentation(Objective[Any]):
    """Softmax cross-entropy of the label of each pixel. Pixels without a label are ignored.

    Evaluations also report the mean intersection over union, which is measured on whole pictures at their original
    size. The pictures are segmented in sliding windows.
    """

    scored: int | None = None
    """Number of held-out pictures on which evaluations measure the mean intersection over union. If None, all; if 0, it
    is not measured.
    """
    overlap: float = 1 / 3
    """Minimum overlap of neighbouring windows when a whole picture is segmented in sliding windows, as a share of the
    window size.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.scored", self.scored, 0)
        fields.within("objective.overlap", self.overlap, 0, 1, below=True)

    model_inputs = ("images",)
    required = ("images", "mask")
    example_task = "SegmentedImages"

    def check(self, model: Any, row: Mapping[str, Any]) -> None:
        if not getattr(model, "is_segmentation_model", False):
            raise self.wrong_model(model, "a Segmenter or a SegFormer")
        self.check_arrays(row)
        size, channels = row["images"].capacity, row["images"].shape[-1]
        if size != model.image or channels != model.channels:
            given = f"data.task.image: size {size} and {channels} channels"
            raise InputError(f"{given}; expected model.image={model.image} and model.channels={model.channels}")

    def __call__(self, model: Any, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats) and the accuracy of a batch, as weighted means over pixels.

        Args:
          model: a segmentation model.
          params: model parameters.
          batch: images [batch, height, width, channels]; mask, integers [batch, height, width], 255 for pixels without
            a label; weights [batch, 1], 1 for each image.
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        mask = batch["mask"].astype(jnp.int32)
        logits = resized(output.logits, mask.shape[1:])
        weights = (mask != IGNORED) * batch["weights"][:, :, None]
        targets = jnp.where(mask == IGNORED, 0, mask)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        right = jnp.argmax(logits, -1) == targets
        return {"loss": Mean.of(-chosen, weights), "accuracy": Mean.of(right, weights)} | auxiliary(output)

    def metrics(self, model: Any) -> tuple[Metric, ...]:
        """Returns the loss, the accuracy and, for evaluations, the mean intersection over union."""
        of_pictures = () if self.scored == 0 else (MeanIou(model.labels, self._segment, self.scored),)
        return Loss(), Average("accuracy", higher_is_better=True), *of_pictures

    def predictor(self, model: Any, params: Any, tokenizer: None) -> Segmentations:
        return Segmentations(model, params, tokenizer, self.overlap)

    def _segment(self, context: Context, example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        found = context.task.scored(example)
        if found is None:
            return None
        picture, mask = found
        return mask, self.predictor(context.model, context.params, None).segment(picture)
