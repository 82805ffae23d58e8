"""Objective of VideoMAE: reconstructs the pixels of masked tubes, which are image regions masked in all frames (Tong et
al. 2022).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.tubelets import check_clips
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.video_masked_autoencoder import VideoMaskedAutoencoder
from jaxformer.objectives.base import Objective

EPSILON = 1e-6
"""Number added to the standard deviation of a tubelet's pixels before dividing by it, to avoid division by zero."""


@dataclasses.dataclass(frozen=True)
class VideoMaskedAutoencoding(Objective[VideoMaskedAutoencoder]):
    """Reconstruction of masked tubelets (patches of a few successive frames). The loss is the mean squared error of
    their pixels. If targets are normalised, a prediction of the mean pixel has a loss of about 1.
    """

    normalised: bool = True
    """Whether each channel of a target tubelet is normalised by its own mean and standard deviation, which improves
    fine-tuning."""

    def __post_init__(self):
        fields.check(self)

    model_inputs = required = ("clips", "noise")
    example_task = "MaskedTubes"

    def check(self, model: VideoMaskedAutoencoder, row: Mapping[str, Any]) -> None:
        if not {"clips", "noise"} <= model.inputs().keys():
            raise self.wrong_model(model, "a VideoMaskedAutoencoder")
        self.check_arrays(row)
        check_clips((row["clips"].capacity, *row["clips"].shape), model)
        if row["noise"].capacity != model.patches:
            raise InputError(
                f"data.task: {row['noise'].capacity} places in a frame; expected the {model.patches} of "
                f"model.patch={model.patch}"
            )

    def __call__(self, model: VideoMaskedAutoencoder, params, batch: Mapping[str, jax.Array], key=None):
        """Computes the loss of a batch, as a weighted mean over masked tubelets.

        Args:
          model: a masked autoencoder of video clips.
          params: model parameters.
          batch: clips [batch, frames, height, width, channels], noise [batch, patches], random numbers that select the
            masked patches (those with the highest numbers), and weights [batch, 1], 1 for each clip.
          key: PRNG key for dropout; if None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        targets = normalised(output.targets) if self.normalised else output.targets
        losses = jnp.square(output.pixels - targets.reshape(output.pixels.shape)).mean(-1)
        loss = Mean.of(losses, jnp.broadcast_to(batch["weights"], losses.shape))
        return {"loss": loss} | auxiliary(output)


def normalised(tubelets: jax.Array) -> jax.Array:
    """Normalises each channel of each tubelet, [..., pixels, channels], to mean 0 and variance 1. Uses the unbiased
    standard deviation (Bessel's correction), as in the paper's code.
    """
    mean, deviation = tubelets.mean(-2, keepdims=True), tubelets.std(-2, keepdims=True, ddof=1)
    return (tubelets - mean) / (deviation + EPSILON)
