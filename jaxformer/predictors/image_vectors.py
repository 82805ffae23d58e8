"""Computes image vectors with an L2 norm of 1."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tasks.images import Prepared
from jaxformer.models.vit import Vit
from jaxformer.predictors.base import Predictor
from jaxformer.predictors.vectors import Embedded, with_cosines

ROWS = 32
"""Number of images that are processed together."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageVectors(Predictor[Vit]):
    """Predictor that computes one vector per image, with an L2 norm of 1."""

    def encode(self, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """Stacks the pixels of the images to one array [images, height, width, channels]. Returns it as the model's
        argument `images`.
        """
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, images: Sequence[Prepared]) -> list[Embedded]:
        """Computes the vector of each image, and its cosine similarities to the other images."""
        parts = [np.stack([image.pixels for image in images[i : i + ROWS]]) for i in range(0, len(images), ROWS)]
        vectors = np.concatenate([np.asarray(_vectors(self.model, self.params, part)) for part in parts])
        return with_cosines([image.path for image in images], vectors)


@functools.partial(jax.jit, static_argnums=0)
def _vectors(model: Vit, params, images) -> jax.Array:
    pooled = model.apply({"params": params}, images, pooled_only=True).pooled.astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
