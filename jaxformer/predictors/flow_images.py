"""Generates images from texts or classes with a flow model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding.flow import Sampling, guided, integrate
from jaxformer.models.dit import Dit
from jaxformer.predictors.base import Draws, Predictor
from jaxformer.predictors.image_rows import encode_texts, generated
from jaxformer.predictors.pictures import Pictures

LEAST_TIME = 0.05
"""Least time by which the difference between a noisy image and the predicted image is divided."""

Predicts = Literal["velocity", "image"]
"""Quantity that a flow model predicts: the velocity of a noisy image, or the image without noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class FlowImages(Predictor[Dit], Draws):
    """Predictor that generates images with a flow model. A request is a text, or the name of a class."""

    sampling: Sampling = Sampling()
    """Settings for generating images."""
    predicts: Predicts = "velocity"
    """Quantity that the model predicts."""

    def encode(self, requests: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts texts to the model inputs `tokens` and `segments`, or class names to the input `classes`. Long texts
        are truncated.
        """
        if self.model.labels:
            return {"classes": np.array([self.model.labels.index(name) for name in requests], np.int32)}
        return {} if self.model.text is None else encode_texts(self.tokenizer, requests, self.model.text.max_length)

    def predict(self, requests: Sequence[str]) -> list[Pictures]:
        """Generates `sampling.pictures` images for each request. The noise of an image depends only on the seed and on
        its number among the images of its request.
        """
        numbers = np.tile(np.arange(self.sampling.pictures), (len(requests), 1))
        generate = functools.partial(_generate, self.model, self.sampling, self.predicts, self.params)
        return generated(requests, self.encode(requests), numbers, generate)


def velocity_of(predicted: jax.Array, noisy: jax.Array, time: jax.Array, predicts: Predicts) -> jax.Array:
    """Converts a prediction of the model to a velocity.

    Args:
      predicted: output of the model, float32 [batch, height, width, channels].
      noisy: noisy images, of the same shape.
      time: time from 0 (no noise) to 1 (only noise), a scalar or [batch, 1, 1, 1].
      predicts: what the model predicts.
    """
    return predicted if predicts == "velocity" else (noisy - predicted) / jnp.maximum(time, LEAST_TIME)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Dit, sampling: Sampling, predicts: Predicts, params: Any, arrays: Mapping[str, jax.Array], numbers: jax.Array
) -> jax.Array:
    """Generates one image per row of `arrays`, uint8 [batch, height, width, channels]. `numbers` are integers [batch]
    that select the noise of each image.
    """
    seed = jax.random.key(sampling.seed)
    shape = (model.image, model.image, model.channels)
    noise = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(seed, number), shape))(numbers)
    is_guided = model.is_conditional and sampling.guidance != 1
    given = dict(arrays)
    if is_guided:  # The second half of the batch has no text or class.
        without = {name: jnp.zeros_like(array) for name, array in arrays.items()}
        if model.labels:
            without["classes"] = jnp.full_like(arrays["classes"], len(model.labels))
        given = {name: jnp.concatenate([arrays[name], without[name]]) for name in arrays}

    def velocity(x: jax.Array, time: jax.Array) -> jax.Array:
        images = jnp.concatenate([x, x]) if is_guided else x
        output = model.apply({"params": params}, images, jnp.full(len(images), 1000 * time), **given)
        found = velocity_of(output.velocity, images, time, predicts)
        if not is_guided:
            return found
        conditional, unconditional = jnp.split(found, 2)
        return guided(conditional, unconditional, sampling.guidance)

    images = integrate(velocity, noise, sampling.method, sampling.steps)
    return model.apply({"params": params}, images, method="decode_images")
