"""Shows how well a masked autoencoder reconstructs the hidden patches of held-out images. There is no prediction for
images of the user.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.predictors.base import Predictor

SHOWN = 4
"""Maximum number of images shown in a demonstration."""


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenPatches(Predictor[MaskedAutoencoder]):
    """Predictor of masked autoencoders, which only shows the reconstruction error of hidden patches."""

    terms: Callable[[MaskedAutoencoder, Any, Mapping[str, Any]], Mapping[str, Any]]
    """Function (model, params, batch) that returns the dict of means that the objective computes for a batch. Its value
    `loss` is the reconstruction error.
    """

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Any]) -> NoReturn:
        """Always raises InputError, because a masked autoencoder cannot answer requests."""
        raise InputError("a masked autoencoder has no answers; fine-tune a Vit with labels from it (init=RUN)")

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Reconstructs the first held-out images, and formats the errors of the hidden patches for display."""
        lines, hidden = [], self.model.patches - self.model.visible
        for row in np.flatnonzero(batch["weights"][:, 0])[:SHOWN]:
            one = {name: array[row : row + 1] for name, array in batch.items()}
            loss = float(self.terms(self.model, self.params, one)["loss"].value)
            lines.append(f"held-out image {row}: squared error {loss:.3f} in {hidden} hidden patches")
        return lines
