"""Flow matching: training of models that turn noise into images along straight paths (Lipman et al. 2023; Liu et al.
2023).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.flow import Sampling
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.dit import Dit
from jaxformer.objectives.base import Objective
from jaxformer.predictors.flow_images import FlowImages, Predicts, velocity_of


class Draws(NamedTuple):
    """Random numbers of each image."""

    noise: jax.Array
    """Gaussian noise, float32 [batch, height, width, channels]."""
    times: jax.Array
    """Times, float32 [batch], from 0 (no noise) to 1 (only noise)."""
    kept: jax.Array
    """Numbers from 0 to 1, float32 [batch]. The condition is dropped if the number is below its dropout rate."""


@dataclasses.dataclass(frozen=True)
class FlowMatching(Objective[Dit]):
    """Flow matching. An image with noise is `(1 - time) · image + time · noise`, and the loss is the mean squared error
    of its velocity, which is `noise - image`. A model that always predicts 0 has a loss of at least 1.
    """

    dropped: float = 0.1
    """Probability that an image is trained without its text or class, so that the model also learns to generate images
    without one, which guidance needs.
    """
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    """Distribution of the times in training: `uniform`, or the logistic function of a standard normal number
    (`logit_normal`), which is usually in the middle (Esser et al. 2024, §3.1). Evaluations always use `uniform`.
    """
    predicts: Predicts = "velocity"
    """Quantity that the model predicts: the `velocity`, or the `image`, from which the velocity is computed. `image` is
    for patches with about as many pixel values as the width of the model or more (Li & He 2025).
    """
    sampling: Sampling = Sampling()
    """Settings for generating images with the trained model. They have no effect on training."""

    model_inputs = ("images", "times", "classes", "tokens", "segments")
    required = ("images", "seeds")
    example_task = "one such as ImagesFromText"
    in_transformers = False

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.dropped", self.dropped, 0, 1, below=True)

    def check_model(self, model: Model) -> None:
        if not {"images", "times"} <= model.inputs().keys():
            raise self.wrong_model(model, "a Dit")
        if getattr(model, "out_channels", None) not in (None, getattr(model, "channels", None)):
            raise InputError(f"model.out_channels={model.out_channels}: expected None, one velocity per channel")

    def check(self, model: Dit, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        size, of_pixels = row["images"].capacity, model if model.vae is None else model.vae
        check_images((size, *row["images"].shape), of_pixels.patch, of_pixels.channels)
        if size != of_pixels.image:
            field = "model.image" if model.vae is None else "model.vae.image"
            raise InputError(f"data.task.image.size={size} differs from {field}={of_pixels.image}")
        for field, array, task in (("labels", "labels", "ImagesFromLabels"), ("text", "tokens", "ImagesFromText")):
            if bool(getattr(model, field)) and array not in row:
                raise InputError(f"model.{field}: the task's rows have no {array}; use {task}")

    def __call__(self, model: Dit, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the mean squared error of the velocity.

        Args:
          model: a DiT.
          params: model parameters.
          batch: images [batch, height, width, channels]; seeds [batch, 1]; tokens and segments [batch, length], or
            labels [batch, 2]; weights [batch, ...], whose sum is 1 for each image.
          key: PRNG key for dropout. If None, the model is evaluated: times are uniform, and no text or class is
            dropped. The noise depends only on the seeds.
        """
        images = model.apply({"params": params}, batch["images"], method="encode_images")
        draws = draw(batch["seeds"][:, 0], images.shape[1:])
        times = draws.times
        if key is not None and self.times == "logit_normal":
            times = jax.nn.sigmoid(jax.scipy.special.ndtri(jnp.clip(times, 1e-6, 1 - 1e-6)))
        share = times[:, None, None, None]
        noisy = (1 - share) * images + share * draws.noise
        given = {"images": noisy, "times": 1000 * times}
        dropped = 0.0 if key is None else self.dropped
        output = self.apply_model(model, params, given | condition(model, batch, draws.kept >= dropped), key)
        velocity = velocity_of(output.velocity, noisy, share, self.predicts)
        errors = jnp.square(velocity - (draws.noise - images)).mean((1, 2, 3))
        return {"loss": Mean.of(errors, batch["weights"].sum(-1))} | auxiliary(output)

    def predictor(self, model: Dit, params: Any, tokenizer: Tokenizer | None) -> FlowImages:
        return FlowImages(model, params, tokenizer, self.sampling, self.predicts)


def draw(seeds: jax.Array, shape: tuple[int, ...]) -> Draws:
    """Draws the random numbers of each image from its seed.

    Args:
      seeds: integers [batch].
      shape: shape of an image, (height, width, channels).
    """

    def one(seed: jax.Array) -> Draws:
        noise, time, kept = jax.random.split(jax.random.key(seed), 3)
        return Draws(jax.random.normal(noise, shape), jax.random.uniform(time), jax.random.uniform(kept))

    return jax.vmap(one)(seeds)


def condition(model: Dit, batch: Mapping[str, jax.Array], kept: jax.Array) -> dict[str, jax.Array]:
    """Returns the model inputs for the text or class of each image, keyed by name.

    Args:
      model: a DiT.
      batch: arrays of the batch: `tokens` and perhaps `segments`, or `labels`.
      kept: whether the text or class of each image is used, boolean [batch].
    """
    if model.labels:
        return {"classes": jnp.where(kept, batch["labels"][:, 0], len(model.labels))}
    if model.text is None:
        return {}
    segments = batch.get("segments", jnp.ones_like(batch["tokens"]))
    return {"tokens": batch["tokens"], "segments": jnp.where(kept[:, None], segments, 0)}
