"""Predicts labels of texts and of pairs of texts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor, Replies
from jaxformer.predictors.labelled_texts import Text, as_given, encode_texts, held_out_texts, text_logits


@dataclasses.dataclass(frozen=True)
class Classified(Answer):
    """A text, or pair of texts separated by a tab, and its predicted labels."""

    pair_names: ClassVar = {"labels": ("label", "probability")}
    display_fields: ClassVar = ("shown",)

    text: str
    """Text in the request."""
    labels: tuple[tuple[str, float], ...]
    """All labels with their probabilities, most likely first."""
    shown: int = 5
    """Maximum number of labels to print."""

    def __str__(self) -> str:
        return "\n".join([self.text, *(f"  {share:6.1%}  {label}" for label, share in self.labels[: self.shown])])


@dataclasses.dataclass(frozen=True, eq=False)
class TextLabels(Predictor[Classifier], Replies):
    """Predicts the labels of texts and of pairs of texts, using a text classifier."""

    many: bool = False
    """Whether a text may have any number of labels (multi-label classification)."""

    def encode(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """Converts texts or pairs of texts to the arguments of the model."""
        return encode_texts(self.model, self.tokenizer, texts)

    def predict(self, texts: Sequence[Text]) -> list[Classified]:
        """Predicts the labels of each text or pair of texts."""
        return [
            Classified(as_given(text), self._ranked(logits))
            for text, logits in zip(texts, text_logits(self.model, self.params, self.tokenizer, texts), strict=True)
        ]

    def reply(self, request: Text) -> Iterator[str]:
        """Yields the most likely label of a text or pair of texts."""
        (answer,) = self.predict([request])
        yield answer.labels[0][0]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Predicts the labels of the first texts in a held-out batch. Returns one line per text: the predicted label,
        the true label if it differs, and the text.
        """
        lines = []
        for text, logits, target in held_out_texts(self.model, self.params, self.tokenizer, batch):
            ranked = self._ranked(logits)
            if self.many:
                guessed, true = {label for label, share in ranked if share > 0.5}, _holding(self.model, target)
                said = ", ".join(sorted(guessed)) or "none"
                right, was = guessed == true, ", ".join(sorted(true)) or "none"
            else:
                (said, share), was = ranked[0], self.model.labels[int(target[0])]
                right, said = said == was, f"{said} {share:.0%}"
            lines.append(f"[{said if right else f'{said}, was {was}'}] {text}")
        return lines

    def _ranked(self, logits: np.ndarray) -> tuple[tuple[str, float], ...]:
        shares = np.asarray(jax.nn.sigmoid(logits) if self.many else jax.nn.softmax(logits))
        return tuple(
            (self.model.labels[number], float(shares[number])) for number in np.argsort(-shares, kind="stable")
        )


def _holding(model: Classifier, target: np.ndarray) -> set[str]:
    return {label for label, holds in zip(model.labels, target, strict=True) if holds}
