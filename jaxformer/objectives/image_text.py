"""Contrastive learning of image and text embeddings (CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.metrics.retrieval import Retrieval
from jaxformer.models.base import Model
from jaxformer.models.clip import Clip
from jaxformer.objectives.base import BatchObjective
from jaxformer.predictors.image_text import ImageTextRanking

LOSSES = {"softmax": softmax_contrastive, "sigmoid": sigmoid_contrastive}


@dataclasses.dataclass(frozen=True)
class ImageTextContrastive(BatchObjective[Clip]):
    """Contrastive learning of images and texts: pairs of an image and its text should have higher scores than all other
    combinations of an image and a text in the batch.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Kind of loss. `softmax` (CLIP) identifies the text of each image and the image of each text. `sigmoid` (SigLIP)
    classifies every combination of an image and a text as a pair or not, and needs a model whose scores have a learned
    bias.
    """
    max_scale: float = 100.0
    """Upper limit of the learned factor by which the loss multiplies cosine similarities (Radford et al. 2021, §2.5).
    """

    model_inputs = ("images", "tokens", "segments")
    required = ("images", "tokens", "weights")
    example_task = "ImageTextPairs"

    def __post_init__(self):
        fields.check(self)
        if not self.max_scale > 0:
            raise InputError(f"objective.max_scale={self.max_scale}: expected above 0")

    def check_model(self, model: Model) -> None:
        if not {"images", "tokens"} <= model.inputs().keys():
            raise self.wrong_model(model, "a Clip or another model of images and texts")
        if self.loss == "sigmoid" and getattr(model, "init_bias", 0.0) is None:
            raise InputError("objective.loss=sigmoid: needs a bias of the scores; expected model.init_bias=-10")

    def vectors(self, model: Clip, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Any]:
        """Computes the vectors that the loss compares. Returns a dict with `image_vectors` and `text_vectors`, float32
        [batch, embed] with an L2 norm of 1, and the model's auxiliary losses.

        Args:
          model: a model of images and texts.
          params: model parameters.
          batch: images [batch, height, width, channels]; tokens, segments [batch, length]; weights [batch, 1].
          key: PRNG key for dropout. If None, the model is evaluated, and the dict also contains `text_keys`: the tokens
            of each text, which identify equal texts.
        """
        output = self.apply_model(model, params, batch, key)
        found: dict[str, Any] = {"image_vectors": output.image_vectors, "text_vectors": output.text_vectors}
        if key is None:  # For the metrics of an evaluation.
            segments = batch.get("segments", jnp.ones_like(batch["tokens"]))
            found |= {"text_keys": jnp.where(segments > 0, batch["tokens"], -1)}
        return found | auxiliary(output)

    def compare(
        self, model: Clip, params, vectors: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """Computes the loss (nats) and the accuracy of retrieving the text of each image and the image of each text
        within the batch (mean of both).
        """
        weights = batch["weights"].reshape(-1)
        scale, bias = model.score_map(params)
        scores = jnp.minimum(scale, self.max_scale) * (vectors["image_vectors"] @ vectors["text_vectors"].T)
        loss, accuracy = LOSSES[self.loss](scores if bias is None else scores + bias, weights)
        terms: dict[str, Any] = {name: part for name, part in vectors.items() if isinstance(part, Mean)}
        if "text_keys" in vectors:
            terms |= {name: part for name, part in vectors.items() if not isinstance(part, Mean)}
            terms["pair_weights"] = weights
        return {"loss": loss, "accuracy": accuracy, **terms}

    def metrics(self, model: Clip) -> tuple[Metric, ...]:
        return Loss(), Average("accuracy", higher_is_better=True), Retrieval()

    def predictor(self, model: Clip, params: Any, tokenizer: Tokenizer) -> ImageTextRanking:
        return ImageTextRanking(model, params, tokenizer, independent=self.loss == "sigmoid")
