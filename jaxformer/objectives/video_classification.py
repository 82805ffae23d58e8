"""Objective of video classification. Evaluations average the predictions for several views (clips and crops) of a video
(Arnab et al. 2021; Tong et al. 2022).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxformer.layers.tubelets import check_clips
from jaxformer.models.video_vit import VideoVit
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.predictors.clip_labels import ClipLabels


@dataclasses.dataclass(frozen=True)
class VideoClassification(ImageClassification):
    """Classification of video clips by softmax cross-entropy. If the batches of an evaluation contain several views
    (clips and crops) of each video, the predicted probabilities are averaged over them.
    """

    model_inputs = ("clips",)
    required = ("clips", "labels")
    example_task = "LabelledClips"

    def check(self, model: VideoVit, row: Mapping[str, Any]) -> None:
        if not getattr(model, "labels", ()) or "clips" not in model.inputs():
            raise self.wrong_model(model, "a VideoVit with labels")
        self.check_arrays(row)
        check_clips((row["clips"].capacity, *row["clips"].shape), model)

    def __call__(self, model: VideoVit, params, batch: Mapping[str, jax.Array], key=None):
        """Computes the loss (nats) and the accuracies of a batch, as weighted means.

        Args:
          model: a classifier of video clips.
          params: model parameters.
          batch: clips [batch, views · frames, height, width, channels]; labels, integers [batch, 2], and their weights
            [batch, 2], because a clip may be mixed from two clips. A row contains the views (clips and crops) of one
            video.
          key: PRNG key for dropout. If None, the model is evaluated without label smoothing, and the result also
            contains the counts for the scores per label (`label_counts`).
        """
        clips, classifier = batch["clips"], cast(Any, model)  # Of clips, not of images.
        return super().__call__(classifier, params, {**batch, "clips": views_of(clips, model.frames)}, key)

    def log_probabilities(self, output: Any, labels: jax.Array) -> jax.Array:
        views = jax.nn.log_softmax(output.logits)
        views = views.reshape(len(labels), -1, views.shape[-1])
        return jax.nn.logsumexp(views, axis=1) - jnp.log(views.shape[1])

    def predictor(self, model: VideoVit, params: Any, tokenizer: None) -> ClipLabels:
        return ClipLabels(model, params, tokenizer)


def views_of(clips: jax.Array, frames: int) -> jax.Array:
    """Reshapes videos with several views each, [batch, views · frames, ...], to one row per view,
    [batch · views, frames, ...].
    """
    return clips.reshape(-1, frames, *clips.shape[2:])
