"""Shows how well a masked autoencoder reconstructs hidden patches. It cannot answer requests."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.predictors.base import Predictor

SHOWN = 4
"""Maximum number of images in a demonstration."""


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenPatches(Predictor[MaskedAutoencoder]):
    """Shows the reconstruction error of hidden patches."""

    terms: Callable[[MaskedAutoencoder, Any, Mapping[str, Any]], Mapping[str, Any]]
    """Function that computes the terms of a batch. One of them is its `loss`."""

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Any]) -> NoReturn:
        """Raises InputError, because a masked autoencoder has no answers."""
        raise InputError("a masked autoencoder has no answers; fine-tune a Vit with labels from it (init=RUN)")

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Formats the reconstruction error of the hidden patches of the first images."""
        lines, hidden = [], self.model.patches - self.model.visible
        for row in np.flatnonzero(batch["weights"][:, 0])[:SHOWN]:
            one = {name: array[row : row + 1] for name, array in batch.items()}
            loss = float(self.terms(self.model, self.params, one)["loss"].value)
            lines.append(f"held-out image {row}: squared error {loss:.3f} in {hidden} hidden patches")
        return lines
