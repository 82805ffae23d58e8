"""The patches that a masked autoencoder does not see; it has no answers, but shows how well it reconstructs them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.predictors.base import Predictor

SHOWN = 4
"""Images of a demonstration."""


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenPatches(Predictor[MaskedAutoencoder]):
    """Shows the error in hidden patches."""

    terms: Callable[[MaskedAutoencoder, Any, Mapping[str, np.ndarray]], Mapping[str, Any]]
    """The terms of a batch, with its `loss`."""

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Any]) -> NoReturn:
        """Raises InputError: there is nothing to say of an image."""
        raise InputError("a masked autoencoder answers nothing: train a Vit with labels from it, by init=RUN")

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """The error in the hidden patches of the first images."""
        lines, hidden = [], self.model.patches - self.model.visible
        for row in np.flatnonzero(batch["weights"][:, 0])[:SHOWN]:
            one = {name: array[row : row + 1] for name, array in batch.items()}
            loss = float(self.terms(self.model, self.params, one)["loss"].value)
            lines.append(f"held-out image {row}: squared error {loss:.3f} in {hidden} hidden patches")
        return lines
