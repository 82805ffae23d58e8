"""Predicts labels of images."""

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

ROWS, MAX_EXAMPLES = 32, 8
"""Number of images per batch (`ROWS`), and maximum number of held-out images that `demonstrate` labels
(`MAX_EXAMPLES`).
"""
TOP = 5
"""Maximum number of labels that are printed per image."""


@dataclasses.dataclass(frozen=True)
class Recognised(Answer):
    """An image file and its predicted labels."""

    pair_names: ClassVar = {"labels": ("label", "probability")}

    path: str
    """Path of the image file."""
    labels: tuple[tuple[str, float], ...]
    """All labels with their probabilities, most likely first."""

    def __str__(self) -> str:
        return "\n".join([self.path, *(f"  {share:6.1%}  {label}" for label, share in self.labels[:TOP])])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageLabels(Predictor[Vit]):
    """Predicts the labels of images, using an image classifier."""

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """Stacks the pixels of the images to one array [images, height, width, channels]. Returns it as the model's
        argument `images`.
        """
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Prepared]) -> list[Recognised]:
        """Predicts the labels of each image, with their probabilities."""
        if not self.model.labels:
            raise InputError("model.labels=(): the model has no class names; fine-tune a Vit with labels (init=RUN)")
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
        """Predicts the labels of the first images in a held-out batch. Returns one line per image: the most likely
        label, its probability, and the true label if it differs.
        """
        rows = np.flatnonzero(batch["weights"][:, 0])[:MAX_EXAMPLES]
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
