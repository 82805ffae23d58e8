"""Classes of texts: one of a model's labels, or each of them by itself (Devlin et al. 2019, §4.1)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.labels import label_counts, label_scores, matthews
from jaxformer.metrics.means import Mean
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.labelled_texts import (
    INPUTS,
    Text,
    as_given,
    check_rows,
    encode_texts,
    held_out_texts,
    text_logits,
)


@dataclasses.dataclass(frozen=True)
class Classified:
    """A text, or a pair with a tab between its two texts, and its labels."""

    text: str
    """As it was given."""
    labels: tuple[tuple[str, float], ...]
    """All labels with their probabilities, the likeliest first."""
    shown: int = 5
    """How many of them are shown to a person."""

    def __str__(self) -> str:
        return "\n".join([self.text, *(f"  {share:6.1%}  {label}" for label, share in self.labels[: self.shown])])


@dataclasses.dataclass(frozen=True)
class Classification:
    """The label of each example, by cross-entropy; or of each label whether it holds."""

    many: bool = False
    """Whether any number of labels may hold, each by itself: rows of `Classify` whose kind is many."""
    label_smoothing: float = 0.0
    """Share of the label's probability that all labels divide (Szegedy et al. 2016)."""

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.label_smoothing", self.label_smoothing, 0, 1, below=True)

    @property
    def problem_type(self) -> str:
        """What transformers calls it in a config.json."""
        return "multi_label_classification" if self.many else "single_label_classification"

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        check_rows("Classification", model, row)
        if len(model.labels) < 2 and not self.many:
            raise InputError(f"model.labels={model.labels}: one class only; there is nothing to tell apart")
        if (row["targets"].dtype == "float32") != self.many:
            rows = "a number, or many labels," if not self.many else "one label"
            raise InputError(
                f"objective.many={self.many}: the task's rows have {rows} for each text; set data.task.kind"
            )

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats) and accuracy of a batch, as weighted means.

        Args:
          model: a classifier with n labels.
          params: its parameters.
          batch: the arrays of `inputs`; targets integers [b, c], or float32 [b, c · n] where many labels may hold;
            weights [b, c].
          key: for dropout; None evaluates, and adds the counts of each label.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs).logits
        count, weights = logits.shape[-1], batch["weights"]
        if self.many:
            targets = batch["targets"].reshape(logits.shape)
            guesses = (logits > 0).astype(jnp.float32)
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = jnp.mean(jax.nn.softplus(logits) - smooth * logits, -1)
        else:
            targets = jax.nn.one_hot(batch["targets"], count)
            guesses = jax.nn.one_hot(jnp.argmax(logits, -1), count)
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / count
            losses = -jnp.sum(smooth * jax.nn.log_softmax(logits), -1)
        right = jnp.all(guesses == targets, -1)
        means = {"loss": Mean.of(losses, weights), "accuracy": Mean.of(right, weights)}
        return means if key is not None else means | label_counts(model.labels, targets, guesses, weights)

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """Loss and accuracy (of all labels at once, where many may hold); of an evaluation the scores of the labels."""
        values = {name: float(means[name].value) for name in ("loss", "accuracy")}
        if scores := label_scores(means):
            values |= {} if self.many else {"matthews": matthews(means)}
        return values | scores

    def encode(self, model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """The model's arguments for texts, or for pairs of texts."""
        return encode_texts(model, tokenizer, texts)

    def predict(self, model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Classified]:
        """The labels of each text, or of each pair of texts."""
        return [
            Classified(as_given(text), self._ranked(model, logits))
            for text, logits in zip(texts, text_logits(model, params, tokenizer, texts), strict=True)
        ]

    def demonstrate(self, model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out texts with their likeliest label, and what is true where it is another."""
        lines = []
        for text, logits, target in held_out_texts(model, params, tokenizer, batch):
            ranked = self._ranked(model, logits)
            if self.many:
                guessed, true = {label for label, share in ranked if share > 0.5}, _holding(model, target)
                said = ", ".join(sorted(guessed)) or "none"
                right, was = guessed == true, ", ".join(sorted(true)) or "none"
            else:
                (said, share), was = ranked[0], model.labels[int(target[0])]
                right, said = said == was, f"{said} {share:.0%}"
            lines.append(f"[{said if right else f'{said}, was {was}'}] {text}")
        return lines

    def _ranked(self, model: Classifier, logits: np.ndarray) -> tuple[tuple[str, float], ...]:
        shares = np.asarray(jax.nn.sigmoid(logits) if self.many else jax.nn.softmax(logits))
        return tuple((model.labels[number], float(shares[number])) for number in np.argsort(-shares, kind="stable"))


def _holding(model: Classifier, target: np.ndarray) -> set[str]:
    return {label for label, holds in zip(model.labels, target, strict=True) if holds}
