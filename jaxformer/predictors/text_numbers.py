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
    """A text, or pair of texts separated by a tab, and its predicted number."""

    text: str
    """Text in the request."""
    name: str
    """Name of the predicted quantity."""
    value: float
    """Predicted number."""

    def __str__(self) -> str:
        return f"{self.text}\n  {self.value:.4f}  {self.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class TextNumbers(Predictor[Classifier]):
    """Predicts a number, such as a rating, for each text or pair of texts, using a regression model."""

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
        """Predicts a number for each of the first texts in a held-out batch. Returns one line per text: the predicted
        number, the true number and the text.
        """
        shown = held_out_texts(self.model, self.params, self.tokenizer, batch)
        return [f"[{logits[0]:.2f}, was {target[0]:.2f}] {text}" for text, logits, target in shown]
