"""Demonstrates a masked autoencoder: reports the reconstruction error of the hidden patches of held-out images. A
masked autoencoder makes no predictions for other images.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.predictors.base import Predictor

MAX_EXAMPLES = 4
"""Maximum number of held-out images whose error `HiddenPatches.demonstrate` reports."""


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenPatches(Predictor[MaskedAutoencoder]):
    """Predictor of masked autoencoders. It can only report the reconstruction error of hidden patches of held-out
    images (`demonstrate`).
    """

    terms: Callable[[MaskedAutoencoder, Any, Mapping[str, Any]], Mapping[str, Any]]
    """Function (model, params, batch) that computes the loss and the metrics of a batch. Returns a dict that maps names
    to weighted means (`Mean`). The entry `loss` is the reconstruction error.
    """

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Any]) -> NoReturn:
        """Always raises InputError, because a masked autoencoder only reconstructs patches and makes no predictions."""
        raise InputError("a masked autoencoder has no answers; fine-tune a Vit with labels from it (init=RUN)")

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Reconstructs the hidden patches of the first images in a held-out batch. Returns one line per image, with the
        squared error.
        """
        lines, hidden = [], self.model.patches - self.model.visible
        for row in np.flatnonzero(batch["weights"][:, 0])[:MAX_EXAMPLES]:
            one = {name: array[row : row + 1] for name, array in batch.items()}
            loss = float(self.terms(self.model, self.params, one)["loss"].value)
            lines.append(f"held-out image {row}: squared error {loss:.3f} in {hidden} hidden patches")
        return lines
