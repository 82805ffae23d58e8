"""Predicts a number for each text or pair of texts (regression)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.labelled_texts import Text, as_given, encode_texts, held_out_texts, text_logits


@dataclasses.dataclass(frozen=True)
class Rated(Answer):
    """Text, or pair of texts separated by a tab, with its predicted number."""

    text: str
    """Text as given in the request."""
    name: str
    """Name of the predicted quantity."""
    value: float
    """Predicted number."""

    def __str__(self) -> str:
        return f"{self.text}\n  {self.value:.4f}  {self.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class TextNumbers(Predictor[Classifier]):
    """Predicts a number for each text."""

    def encode(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """Converts texts or pairs of texts to the arguments of the model."""
        return encode_texts(self.model, self.tokenizer, texts)

    def predict(self, texts: Sequence[Text]) -> list[Rated]:
        """Predicts the number of each text or pair of texts."""
        logits = text_logits(self.model, self.params, self.tokenizer, texts)
        return [
            Rated(as_given(text), self.model.labels[0], float(value))
            for text, [value] in zip(texts, logits, strict=True)
        ]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Formats a few held-out texts with their predicted and true numbers."""
        shown = held_out_texts(self.model, self.params, self.tokenizer, batch)
        return [f"[{logits[0]:.2f}, was {target[0]:.2f}] {text}" for text, logits, target in shown]
