"""Objective of the masked autoencoder: reconstruct the pixels of masked patches (He et al. 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.objectives.base import Objective
from jaxformer.predictors.hidden_patches import HiddenPatches

EPSILON = 1e-6
"""Number added to the variance of a patch's pixels before dividing by its square root."""


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding(Objective[MaskedAutoencoder]):
    """Reconstruction of masked patches. The loss is the mean squared error of their pixels. If targets are normalised,
    a prediction of the mean pixel of each patch has a loss of about 1.
    """

    normalised: bool = True
    """Whether the target pixels of each patch are normalised by the patch's own mean and standard deviation, which
    improves fine-tuning.
    """

    def __post_init__(self):
        fields.check(self)

    model_inputs = required = ("images", "noise")
    example_task = "MaskedPatches"

    def check(self, model: MaskedAutoencoder, row: Mapping[str, Any]) -> None:
        if "noise" not in model.inputs() or model.decoder is None:
            kind = type(model).__name__ + " without a decoder" * ("noise" in model.inputs())
            raise InputError(f"objective=MaskedAutoencoding: needs a MaskedAutoencoder; the model is a {kind}")
        self.check_arrays(row)
        size = row["images"].capacity
        check_images((size, *row["images"].shape), model.patch, model.channels)
        if size != model.image or row["noise"].capacity != model.patches:
            raise InputError(
                f"data.task: size {size} and {row['noise'].capacity} patches; expected model.image={model.image} and "
                f"the {model.patches} patches of model.patch={model.patch}"
            )

    def __call__(self, model: MaskedAutoencoder, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss of a batch, as a weighted mean over masked patches.

        Args:
          model: a masked autoencoder.
          params: model parameters.
          batch: images [batch, height, width, channels], noise [batch, patches], random numbers that select the masked
            patches (those with the highest numbers), and weights [batch, 1], 1 for each image.
          key: PRNG key for dropout; if None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        targets = normalised(output.targets) if self.normalised else output.targets
        loss = Mean.of(jnp.square(output.pixels - targets).mean(-1), output.masked * batch["weights"])
        return {"loss": loss} | auxiliary(output)

    def predictor(self, model: MaskedAutoencoder, params: Any, tokenizer: None) -> HiddenPatches:
        return HiddenPatches(model, params, tokenizer, self)


def normalised(patches: jax.Array) -> jax.Array:
    """Normalises the pixels of each patch, [..., pixels], to mean 0 and variance 1. Uses Bessel's correction, as in the
    paper's code.
    """
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + EPSILON)
