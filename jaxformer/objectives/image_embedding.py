"""Objective for using image encoders that were pretrained without labels, such as DINOv2 (Oquab et al. 2024).

It has no loss: a run with this objective computes image embeddings, but cannot be trained.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from jaxformer.errors import InputError
from jaxformer.models.vit import Vit
from jaxformer.objectives.base import Objective
from jaxformer.predictors.image_vectors import ImageVectors


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Objective[Vit]):
    """Embeds each image as one vector with an L2 norm of 1: the model's pooled output, normalized."""

    model_inputs = ("images",)

    def check(self, model: Vit, row: Mapping[str, Any]) -> NoReturn:
        """Raises InputError, because a model cannot be trained with this objective."""
        self._refuse()

    def __call__(self, model: Vit, params, batch: Mapping[str, jax.Array], key=None) -> NoReturn:
        """Raises InputError, because this objective has no loss."""
        self._refuse()

    def predictor(self, model: Vit, params: Any, tokenizer: None) -> ImageVectors:
        return ImageVectors(model, params, tokenizer)

    def _refuse(self) -> NoReturn:
        raise InputError("objective=ImageEmbedding: predicts only; expected one that trains: ImageClassification")
