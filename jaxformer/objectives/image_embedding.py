"""Vectors of images from an encoder without labels, such as DINOv2 (Oquab et al. 2024); it only predicts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.models.vit import Vit
from jaxformer.objectives.sentence_embedding import Embedded, with_cosines

ROWS = 32
"""Images at a time."""


@dataclasses.dataclass(frozen=True)
class ImageEmbedding:
    """One vector an image: what stands for it in the model, with length 1."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """None: it does not train."""
        return {}

    def check(self, model: Vit, row: Mapping[str, Any]) -> NoReturn:
        """Raises InputError: nothing trains the model for this here."""
        self._refuse()

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {"images": batch["images"]}

    def __call__(self, model: Vit, params, batch: Mapping[str, jax.Array], key=None) -> NoReturn:
        """Raises InputError, as `check` does."""
        self._refuse()

    def report(self, means: Mapping[str, Any]) -> NoReturn:
        """Raises InputError, as `check` does."""
        self._refuse()

    def demonstrate(self, model: Vit, params, tokenizer: None, batch: Mapping[str, Any]) -> list[str]:
        """Nothing to show of a batch."""
        return []

    def encode(self, model: Vit, tokenizer: None, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """The model's arguments for the images."""
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, model: Vit, params, tokenizer: None, images: Sequence[Prepared]) -> list[Embedded]:
        """The vector of each image, with the cosines to the others."""
        parts = [np.stack([image.pixels for image in images[i : i + ROWS]]) for i in range(0, len(images), ROWS)]
        vectors = np.concatenate([np.asarray(_vectors(model, params, part)) for part in parts])
        return with_cosines([image.path for image in images], vectors)

    def _refuse(self) -> NoReturn:
        raise InputError("objective=ImageEmbedding: predicts only; expected one that trains: ImageClassification")


@functools.partial(jax.jit, static_argnums=0)
def _vectors(model: Vit, params, images) -> jax.Array:
    pooled = model.apply({"params": params}, images, pooled_only=True).pooled.astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
