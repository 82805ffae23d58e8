"""A number for each text or pair of texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.labelled_texts import Text, as_given, encode_texts, held_out_texts, text_logits


@dataclasses.dataclass(frozen=True)
class Rated(Answer):
    """A text, or a pair with a tab between its two texts, and the number predicted of it."""

    text: str
    """As it was given."""
    name: str
    """The name of the number."""
    value: float
    """The number."""

    def __str__(self) -> str:
        return f"{self.text}\n  {self.value:.4f}  {self.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class TextNumbers(Predictor[Classifier]):
    """Predicts the number of each text."""

    def encode(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """The model's arguments for texts, or for pairs of texts."""
        return encode_texts(self.model, self.tokenizer, texts)

    def predict(self, texts: Sequence[Text]) -> list[Rated]:
        """The number of each text, or of each pair of texts."""
        logits = text_logits(self.model, self.params, self.tokenizer, texts)
        return [
            Rated(as_given(text), self.model.labels[0], float(value))
            for text, [value] in zip(texts, logits, strict=True)
        ]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out texts with their numbers, predicted and true."""
        shown = held_out_texts(self.model, self.params, self.tokenizer, batch)
        return [f"[{logits[0]:.2f}, was {target[0]:.2f}] {text}" for text, logits, target in shown]
