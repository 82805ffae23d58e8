"""A number for each text or pair of texts, such as how alike the two are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.means import Covariance, Mean
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.labelled_texts import (
    INPUTS,
    Text,
    as_given,
    check_rows,
    encode_texts,
    held_out_texts,
    text_logits,
    token_logits,
)


@dataclasses.dataclass(frozen=True)
class Rated:
    """A text, or a pair with a tab between its two texts, and the number predicted of it."""

    text: str
    """As it was given."""
    name: str
    """What the number is."""
    value: float
    """The number."""

    def __str__(self) -> str:
        return f"{self.text}\n  {self.value:.4f}  {self.name}"


@dataclasses.dataclass(frozen=True)
class Regression:
    """The number of each example, by its squared error; the model has one label, the number's name."""

    @property
    def problem_type(self) -> str:
        """What transformers calls it in a config.json."""
        return "regression"

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        check_rows("Regression", model, row)
        if len(model.labels) > 1:
            raise InputError(f"model.labels={model.labels}: expected one, the name of the number that is predicted")
        if row["targets"].dtype != "float32":
            raise InputError("objective=Regression: the task's rows have labels; set data.task.kind=regression")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The squared and the absolute error of a batch as weighted means.

        Args:
          model: a classifier with one label.
          params: its parameters.
          batch: the arrays of `inputs`; targets and weights float32 [b, c].
          key: for dropout; None evaluates, and adds the covariance of predictions and targets.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs).logits
        x, y, weights = logits[..., 0], batch["targets"], batch["weights"]
        means = {"loss": Mean.of((x - y) ** 2, weights), "absolute_error": Mean.of(jnp.abs(x - y), weights)}
        if key is None:
            pairs = jnp.stack([x.reshape(-1), y.reshape(-1)], axis=-1)
            means["covariance"] = Covariance.of(pairs, weights.reshape(-1))
        return means

    def document_scores(
        self, model: Classifier, params, tokenizer: Tokenizer, task: Classify, documents: Sequence[Mapping[str, Any]]
    ) -> dict[str, Mean]:
        """Spearman's correlation over all documents, as ranks do not add up from batch to batch."""
        texts = read_each(documents, lambda document: task.encode(document, tokenizer))
        texts = [text for text in texts if len(text.first)]
        pairs, truth = [(text.first, text.second) for text in texts], [text.target[0] for text in texts]
        values = token_logits(model, params, tokenizer, pairs, task.length)[:, 0]
        alike = len(set(truth)) < 2 or len(set(values.tolist())) < 2
        correlation = 0.0 if alike else scipy.stats.spearmanr(values, truth).statistic
        return {"spearman": Mean(np.float64(correlation), np.float64(1))}

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The mean squared and the mean absolute error, and the correlations, 0 where all numbers are alike.

        Pearson's is there in evaluations; Spearman's where there are `document_scores`, in one process.
        """
        values = {name: float(means[name].value) for name in ("loss", "absolute_error")}
        if "covariance" in means:
            values["pearson"] = means["covariance"].correlation
        return values | {name: float(means[name].value) for name in ("spearman",) if name in means}

    def encode(self, model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """The model's arguments for texts, or for pairs of texts."""
        return encode_texts(model, tokenizer, texts)

    def predict(self, model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Rated]:
        """The number of each text, or of each pair of texts."""
        logits = text_logits(model, params, tokenizer, texts)
        return [
            Rated(as_given(text), model.labels[0], float(value)) for text, [value] in zip(texts, logits, strict=True)
        ]

    def demonstrate(self, model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out texts with their numbers, predicted and true."""
        shown = held_out_texts(model, params, tokenizer, batch)
        return [f"[{logits[0]:.2f}, was {target[0]:.2f}] {text}" for text, logits, target in shown]
