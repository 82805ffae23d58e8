"""Training of DALL·E: predicts the tokens of a text, and then the codes of its image (Ramesh et al. 2021, §2.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.losses.cross_entropy import decoded_cross_entropy
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.dalle import Dalle
from jaxformer.objectives.base import Objective
from jaxformer.predictors.token_images import TokenImages

SAMPLED = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "seed",
)
"""Fields of `Decoding` that may differ from their default. `max_new_tokens` has no effect, because an image has a fixed
number of codes.
"""


@dataclasses.dataclass(frozen=True)
class ImageTokens(Objective[Dalle]):
    """Prediction of the codes of an image from a text. Freeze the autoencoder (`optimizer.freeze=^vae/`), which has no
    gradient.
    """

    text_weight: float = 1 / 8
    """Weight of the loss of the text. That of the codes has the weight 1 - `text_weight`."""
    dropped: float = 0.1
    """Probability that an image is trained without its text, so that the model also learns to generate images without
    one, which guidance needs.
    """
    guidance: float = 3.0
    """Factor by which the difference between the logits with and without the text is multiplied when images are
    generated (classifier-free guidance). With 1, there is no guidance.
    """
    pictures: int = 4
    """Number of images to generate per text."""
    decoding: Decoding = Decoding(temperature=1.0, top_p=0.95)
    """Settings for sampling the codes of images. They have no effect on training."""

    model_inputs = ("images", "tokens", "segments")
    required = ("images", "tokens", "seeds")
    example_task = "ImagesFromText"
    in_transformers = False

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.text_weight", self.text_weight, 0, 1)
        fields.within("objective.dropped", self.dropped, 0, 1, below=True)
        fields.at_least("objective.guidance", self.guidance, 0)
        fields.at_least("objective.pictures", self.pictures, 1)
        for field in dataclasses.fields(Decoding):
            value = getattr(self.decoding, field.name)
            if field.name not in SAMPLED and value != field.default:
                raise InputError(
                    f"objective.decoding.{field.name}={value}: codes are sampled; expected {field.default}"
                )

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"image_loss": 1 - self.text_weight, "text_loss": self.text_weight}

    def check_model(self, model: Model) -> None:
        if not {"images", "tokens"} <= model.inputs().keys() or not hasattr(model, "vae"):
            raise self.wrong_model(model, "a Dalle")

    def check(self, model: Dalle, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        size = row["images"].capacity
        check_images((size, *row["images"].shape), model.vae.patch, model.vae.channels)
        if size != model.vae.image:
            raise InputError(f"data.task.image.size={size} differs from model.vae.image={model.vae.image}")

    def __call__(self, model: Dalle, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the cross-entropies of the codes of the images and of the tokens of the texts (both in nats), and
        the accuracy of the codes.

        Args:
          model: a DALL·E.
          params: model parameters.
          batch: images [batch, height, width, channels]; tokens and segments [batch, length]; seeds and weights [batch,
            1].
          key: PRNG key for dropout. If None, the model is evaluated, and no text is dropped.
        """
        segments = there = batch.get("segments", jnp.ones_like(batch["tokens"]))
        if key is not None:
            kept = jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed)))(batch["seeds"][:, 0])
            there = jnp.where(kept[:, None] >= self.dropped, segments, 0)
        output = self.apply_model(model, params, dict(batch) | {"segments": there}, key)
        weights = batch["weights"].sum(-1, keepdims=True)
        of_codes = jnp.broadcast_to(weights, output.codes.shape)
        image = decoded_cross_entropy(output.hidden, output.code_head, output.codes, of_codes)
        # The image does not attend to a dropped text, but the tokens of the text attend to each other.
        targets = jnp.roll(batch["tokens"], -1, axis=1)
        follows = (segments[:, 1:] > 0) & (segments[:, :-1] > 0)
        of_tokens = jnp.pad(follows * weights, ((0, 0), (0, 1)))
        text = decoded_cross_entropy(output.text, output.text_head, targets, of_tokens)
        terms = {"image_loss": image.loss, "text_loss": text.loss, "accuracy": image.accuracy}
        return terms | auxiliary(output)

    def metrics(self, model: Dalle) -> tuple[Metric, ...]:
        accuracy = Average("accuracy", higher_is_better=True)
        return Loss.of(self.loss_weights), Average("image_loss"), Average("text_loss"), accuracy

    def predictor(self, model: Dalle, params: Any, tokenizer: Tokenizer) -> TokenImages:
        return TokenImages(model, params, tokenizer, self.decoding, self.guidance, self.pictures)
