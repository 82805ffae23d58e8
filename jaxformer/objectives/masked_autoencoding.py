"""The masked autoencoder's loss: the pixels of the patches that the encoder did not see (He et al. 2022)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.metrics.means import Mean
from jaxformer.models.masked_autoencoder import MaskedAutoencoder

EPSILON = 1e-6
"""Added to the variance of a patch."""
SHOWN = 4


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding:
    """The mean squared error of hidden patches."""

    normalised: bool = True
    """Whether each patch is to be painted with its own mean taken off and divided by its own deviation, from which
    classifiers start better."""

    def __post_init__(self):
        fields.check(self)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: MaskedAutoencoder, row: Mapping[str, Any]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        if "noise" not in model.inputs() or model.decoder is None:
            kind = type(model).__name__ + " without a decoder" * ("noise" in model.inputs())
            raise InputError(f"objective=MaskedAutoencoding: needs a MaskedAutoencoder; the model is a {kind}")
        if missing := [name for name in ("images", "noise") if name not in row]:
            raise InputError(f"objective=MaskedAutoencoding: the task's rows have no {missing[0]}; use MaskedPatches")
        size = row["images"].capacity
        check_images((size, *row["images"].shape), model.patch, model.channels)
        if size != model.image or row["noise"].capacity != model.patches:
            raise InputError(
                f"data.task: size {size} and {row['noise'].capacity} patches; expected model.image={model.image} and "
                f"the {model.patches} patches of model.patch={model.patch}"
            )

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in ("images", "noise")}

    def __call__(self, model: MaskedAutoencoder, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss of a batch, as a weighted mean over hidden patches.

        Args:
          model: a masked autoencoder.
          params: its parameters.
          batch: images [b, height, width, n], noise [b, p], and weights [b, 1], 1 for each image.
          key: for dropout; None evaluates.
        """
        rngs = None if key is None else {"dropout": key}
        output = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs)
        targets = normalised(output.targets) if self.normalised else output.targets
        return {"loss": Mean.of(jnp.square(output.pixels - targets).mean(-1), output.masked * batch["weights"])}

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The loss; painting every hidden patch grey has 1, where patches are normalised."""
        return {"loss": float(means["loss"].value)}

    def encode(self, model: MaskedAutoencoder, tokenizer: None, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """The model's arguments for the images."""
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, model: MaskedAutoencoder, params, tokenizer: None, images: Sequence[Any]) -> NoReturn:
        """Raises InputError: there is nothing to say of an image."""
        raise InputError("a masked autoencoder answers nothing: train a Vit with labels from it, by init=RUN")

    def demonstrate(self, model: MaskedAutoencoder, params, tokenizer: None, batch: Mapping[str, Any]) -> list[str]:
        """How near the hidden patches of the first images are painted."""
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0])[:SHOWN]:
            one = {name: array[row : row + 1] for name, array in batch.items()}
            loss = float(self(model, params, one)["loss"].value)
            hidden = model.patches - model.visible
            lines.append(f"held-out image {row}: squared error {loss:.3f} in {hidden} hidden patches")
        return lines


def normalised(patches: jax.Array) -> jax.Array:
    """Patches [..., pixels] with mean 0 and variance 1 each, divided by n - 1 pixels as the paper's program does."""
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + EPSILON)
