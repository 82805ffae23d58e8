"""Vectors of images from an encoder without labels, such as DINOv2 (Oquab et al. 2024); it only predicts."""

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
    """One vector an image: what stands for it in the model, with length 1."""

    model_inputs = ("images",)

    def check(self, model: Vit, row: Mapping[str, Any]) -> NoReturn:
        """Raises InputError: nothing trains the model for this here."""
        self._refuse()

    def __call__(self, model: Vit, params, batch: Mapping[str, jax.Array], key=None) -> NoReturn:
        """Raises InputError, as `check` does."""
        self._refuse()

    def predictor(self, model: Vit, params: Any, tokenizer: None) -> ImageVectors:
        return ImageVectors(model, params, tokenizer)

    def _refuse(self) -> NoReturn:
        raise InputError("objective=ImageEmbedding: predicts only; expected one that trains: ImageClassification")
