"""Labels of images."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.vit import Vit
from jaxformer.predictors.base import Answer, Predictor

ROWS, SHOWN = 32, 8
"""Images at a time in a prediction; images of a demonstration."""
TOP = 5
"""Labels that are printed."""


@dataclasses.dataclass(frozen=True)
class Recognised(Answer):
    """An image and its labels."""

    pair_names: ClassVar = {"labels": ("label", "probability")}

    path: str
    """The file."""
    labels: tuple[tuple[str, float], ...]
    """The labels with their probabilities, the likeliest first."""

    def __str__(self) -> str:
        return "\n".join([self.path, *(f"  {share:6.1%}  {label}" for label, share in self.labels[:TOP])])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageLabels(Predictor[Vit]):
    """Labels images."""

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """The model's arguments for the images."""
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Prepared]) -> list[Recognised]:
        """The labels of each image, with their probabilities."""
        if not self.model.labels:
            raise InputError("model.labels=(): the model names no classes; train a Vit with labels from it by init")
        found = []
        for start in range(0, len(images), ROWS):
            part = images[start : start + ROWS]
            probabilities = np.asarray(
                _probabilities(self.model, self.params, np.stack([image.pixels for image in part]))
            )
            for image, row in zip(part, probabilities, strict=True):
                order = np.argsort(-row, kind="stable")
                found.append(Recognised(image.path, tuple((self.model.labels[i], float(row[i])) for i in order)))
        return found

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Lines with the predicted labels of the first images of a batch."""
        rows = np.flatnonzero(batch["weights"][:, 0])[:SHOWN]
        probabilities = np.asarray(_probabilities(self.model, self.params, batch["images"][rows]))
        lines = []
        for row, shares in zip(rows, probabilities, strict=True):
            target, guess = int(batch["labels"][row, 0]), int(shares.argmax())
            wrong = "" if guess == target else f", was {self.model.labels[target]}"
            lines.append(f"held-out image {row}: {self.model.labels[guess]} ({shares[guess]:.1%}){wrong}")
        return lines


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: Vit, params, images) -> jax.Array:
    return jax.nn.softmax(model.apply({"params": params}, images, pooled_only=True).logits)
