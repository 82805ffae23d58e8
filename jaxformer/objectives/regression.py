"""Objective of regression: predicts a number for a text or a text pair, such as the similarity of two sentences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.averages import Average, Loss, Pearson
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.means import Covariance, Mean, auxiliary
from jaxformer.metrics.ranks import Pairs, Spearman
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.base import Objective
from jaxformer.predictors.labelled_texts import INPUTS, check_rows, token_logits
from jaxformer.predictors.text_numbers import TextNumbers


@dataclasses.dataclass(frozen=True)
class Regression(Objective[Classifier]):
    """Predicts one number per example. The loss is the squared error. The only label of the model is the name of the
    predicted number.
    """

    model_inputs = INPUTS

    @property
    def problem_type(self) -> str:
        """Value of `problem_type` in the config.json of an exported Hugging Face model."""
        return "regression"

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        check_rows("Regression", model, row)
        if len(model.labels) > 1:
            raise InputError(f"model.labels={model.labels}: expected one, the name of the number that is predicted")
        if row["targets"].dtype != "float32":
            raise InputError("objective=Regression: the task's rows have labels; set data.task.kind=regression")

    def __call__(
        self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None
    ) -> dict[str, Mean | Covariance]:
        """Computes the squared and the absolute error of a batch, as weighted means.

        Args:
          model: a classifier with one label.
          params: model parameters.
          batch: the input arrays of the model, and `targets` (the numbers to predict) and `weights` (1 for examples, 0
            for padding), both float32 [batch, examples]. A row may contain several examples.
          key: PRNG key for dropout. If None, the model is evaluated, and the covariance of predictions and targets is
            added.
        """
        output = self.apply_model(model, params, batch, key)
        logits = output.logits
        x, y, weights = logits[..., 0], batch["targets"], batch["weights"]
        means: dict[str, Mean | Covariance] = {
            "loss": Mean.of((x - y) ** 2, weights),
            "absolute_error": Mean.of(jnp.abs(x - y), weights),
        }
        means |= auxiliary(output)
        if key is None:
            pairs = jnp.stack([x.reshape(-1), y.reshape(-1)], axis=-1)
            means["covariance"] = Covariance.of(pairs, weights.reshape(-1))
        return means

    def metrics(self, model: Classifier) -> tuple[Metric, ...]:
        """Returns the mean squared error, the mean absolute error and, for evaluations, the Pearson and Spearman
        correlations.
        """
        return Loss(), Average("absolute_error"), Pearson(), Spearman(_predictions)

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> TextNumbers:
        return TextNumbers(model, params, tokenizer)


def _predictions(context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Pairs:
    """Predicts a number for each document with an index in `indices`. Documents without tokens are left out. Returns
    pairs (predicted number, target number).
    """
    texts = read_each(documents, lambda one: context.task.encode(one, context.tokenizer), indices)
    texts = [text for text in texts if len(text.first)]
    pairs = [(text.first, text.second) for text in texts]
    values = token_logits(context.model, context.params, context.tokenizer, pairs, context.task.length)[:, 0]
    return tuple((float(value), float(text.target[0])) for value, text in zip(values, texts, strict=True))
