"""Text classification with one label per example or any number of labels (Devlin et al. 2019, §4.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.labels import LabelScores, Matthews, label_counts
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.base import Objective
from jaxformer.predictors.labelled_texts import INPUTS, check_rows
from jaxformer.predictors.text_labels import TextLabels


@dataclasses.dataclass(frozen=True)
class Classification(Objective[Classifier]):
    """Text classification: softmax cross-entropy over the labels or, if `many` is True, the binary cross-entropy of
    each label.
    """

    many: bool = False
    """Whether an example may have any number of labels, as with the task `Classify(kind="multi_label")`."""
    label_smoothing: float = 0.0
    """Share of the target probability that is distributed uniformly over the labels (Szegedy et al. 2016)."""

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.label_smoothing", self.label_smoothing, 0, 1, below=True)

    @property
    def problem_type(self) -> str:
        """Value of `problem_type` in the config.json of an exported Hugging Face model. It depends on `many`."""
        return "multi_label_classification" if self.many else "single_label_classification"

    model_inputs = INPUTS

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        check_rows("Classification", model, row)
        if len(model.labels) < 2 and not self.many:
            raise InputError(f"model.labels={model.labels}: one class only; expected two or more")
        if (row["targets"].dtype == "float32") != self.many:
            rows = "a number, or many labels," if not self.many else "one label"
            raise InputError(
                f"objective.many={self.many}: the task's rows have {rows} for each text; set data.task.kind"
            )

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats) and the accuracy of a batch, as weighted means.

        Args:
          model: a text classifier.
          params: model parameters.
          batch: the input arrays of the model, and `targets` and `weights` (1 for examples, 0 for padding)
            [batch, examples]. A row may contain several examples. Targets are integers [batch, examples] or, if `many`,
            multi-hot float32 [batch, examples · labels].
          key: PRNG key for dropout. If None, the model is evaluated, and the result also contains the counts for the
            scores per label (`label_counts`).
        """
        output = self.apply_model(model, params, batch, key)
        logits = output.logits
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
        means = {"loss": Mean.of(losses, weights), "accuracy": Mean.of(right, weights)} | auxiliary(output)
        return means if key is not None else means | label_counts(model.labels, targets, guesses, weights)

    def metrics(self, model: Classifier) -> tuple[Metric, ...]:
        """Returns the loss and the accuracy, and for evaluations also scores per label. If `many` is True, the accuracy
        counts an example as correct only if all its labels are correct.
        """
        matthews = () if self.many else (Matthews(model.labels),)
        return Loss(), Average("accuracy", higher_is_better=True), *matthews, LabelScores(model.labels)

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> TextLabels:
        return TextLabels(model, params, tokenizer, self.many)
