"""An objective with a metric and a predictor of its own on a model of the library, as a user would write one."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.metrics import Average, Mean, Metric
from jaxformer.models.classifier import Classifier
from jaxformer.objectives import Objective
from jaxformer.predictors.base import Answer, Embeds, Predictor
from jaxformer.predictors.labelled_texts import encode_texts


@dataclasses.dataclass(frozen=True)
class WorstMargin(Metric[float]):
    """The smallest margin by which the right label beats the others: no mean over batches."""

    names = ("worst_margin",)
    higher_is_better = True

    def update(self, terms):
        if "margins" not in terms:
            return None
        margins = terms["margins"][terms["real"] > 0]
        return float(margins.min()) if len(margins) else np.inf

    def merge(self, state, other):
        return min(state, other)

    def compute(self, state):
        return {"worst_margin": state}


@dataclasses.dataclass(frozen=True)
class Verdict(Answer):
    """A text and its label."""

    text: str
    label: str

    def __str__(self):
        return f"{self.text}: {self.label}"


@dataclasses.dataclass(frozen=True, eq=False)
class Judge(Predictor[Classifier], Embeds):
    """Labels texts; the vector of a text are its logits."""

    def encode(self, requests):
        return encode_texts(self.model, self.tokenizer, requests)

    def predict(self, requests):
        best = self.embed(requests).argmax(-1)
        return [Verdict(text, self.model.labels[label]) for text, label in zip(requests, best, strict=True)]

    def embed(self, requests):
        return np.asarray(self.model.apply({"params": self.params}, **self.encode(requests)).logits[:, 0])


@dataclasses.dataclass(frozen=True)
class Hinge(Objective[Classifier]):
    """The multiclass hinge loss (Crammer & Singer 2001)."""

    margin: float = 1.0
    """The margin by which the right label should beat the others."""

    model_inputs = ("tokens", "segments", "position_ids", "token_types", "cls_positions")
    required = ("targets", "weights")

    def __call__(self, model, params, batch: Mapping[str, jax.Array], key=None):
        logits = self.apply_model(model, params, batch, key).logits
        right = jnp.take_along_axis(logits, batch["targets"][..., None], -1)
        is_right = jax.nn.one_hot(batch["targets"], logits.shape[-1])
        margins = (right - logits + 1e9 * is_right).min(-1)
        terms = {"loss": Mean.of(jax.nn.relu(self.margin - margins), batch["weights"])}
        if key is None:
            terms |= {"accuracy": Mean.of(margins > 0, batch["weights"]), "margins": margins, "real": batch["weights"]}
        return terms

    def metrics(self, model):
        return *super().metrics(model), Average("accuracy", higher_is_better=True), WorstMargin()

    def predictor(self, model, params, tokenizer):
        return Judge(model, params, tokenizer)
