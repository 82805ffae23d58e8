"""BERT's pretraining objective: masked language modelling and next-sentence prediction (Devlin et al. 2019, §3.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.losses.cross_entropy import class_cross_entropy, decoded_cross_entropy
from jaxformer.metrics.averages import Average, LargestShare, Loss, Perplexity
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.bert import Bert
from jaxformer.objectives.base import Objective
from jaxformer.predictors.fill_mask import FillMask


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective[Bert]):
    """BERT pretraining: predicts the masked tokens, and whether the second sentence follows the first."""

    next_sentence: float = 1.0
    """Weight of the next-sentence loss, relative to the masked-LM loss. If 0, there is no next-sentence loss."""

    model_inputs = ("tokens", "segments", "position_ids", "token_types", "masked_positions", "cls_positions")

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Maps the names of losses to their weights in the total loss."""
        weights = {"masked_lm_loss": 1.0, "next_sentence_loss": self.next_sentence}
        return {name: weight for name, weight in weights.items() if weight}

    def check_model(self, model: Bert) -> None:
        if not hasattr(model, "prediction_heads"):
            raise self.wrong_model(model, "a Bert")

    def check(self, model: Bert, row: Mapping[str, Any]) -> None:
        self.check_model(model)
        needed = ("masked_lm", "next_sentence") if self.next_sentence else ("masked_lm",)
        if missing := [name for name in needed if name not in model.prediction_heads]:
            raise InputError(
                f"model.prediction_heads={model.prediction_heads}: expected {missing[0]} for objective=MaskedLM"
            )
        if self.next_sentence and "next_sentence" not in row:
            raise InputError(
                f"objective.next_sentence={self.next_sentence}: the rows have no sentence pairs; expected 0 with "
                "data.task.next_sentence=False"
            )
        if "next_sentence" in row and model.token_types < 2:
            raise InputError(f"model.token_types={model.token_types}: expected at least 2 for sentence pairs")

    def __call__(self, model: Bert, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the losses (nats) and accuracies of a batch, as weighted means.

        Args:
          model: a BERT.
          params: model parameters.
          batch: tokens, segments, position_ids, token_types [batch, length]; masked_positions, targets, weights
            [batch, predictions]; cls_positions, next_sentence (label), next_sentence_weights [batch, pairs], where
            pairs are the sentence pairs of a row.
          key: PRNG key for dropout. If None, the model is evaluated and the result also contains `target_counts`, how
            often each token of the vocabulary is a target.
        """
        output = self.apply_model(model, params, batch, key)
        targets, weights = batch["targets"], batch["weights"]
        tokens = decoded_cross_entropy(output.prediction, output.lm_head, targets, weights)
        means = {"masked_lm_loss": tokens.loss, "masked_lm_accuracy": tokens.accuracy} | auxiliary(output)
        if key is None:
            counts = jnp.zeros(model.vocab).at[targets.reshape(-1)].add(weights.reshape(-1))
            means["target_counts"] = Mean(counts, weights.sum())
        if self.next_sentence:
            logits, labels = output.next_sentence_logits, batch["next_sentence"]
            loss, accuracy = class_cross_entropy(logits, labels, batch["next_sentence_weights"])
            means |= {"next_sentence_loss": loss, "next_sentence_accuracy": accuracy}
        return means

    def metrics(self, model: Bert) -> tuple[Metric, ...]:
        """Returns the losses and accuracies, and as a baseline the accuracy of always predicting the most frequent
        target token.
        """
        found = [Loss.of(self.loss_weights)]
        for kind in ("masked_lm", "next_sentence")[: 2 if self.next_sentence else 1]:
            found += [Average(f"{kind}_accuracy", higher_is_better=True), Average(f"{kind}_loss")]
        return (
            *found,
            Perplexity("masked_lm_perplexity", "masked_lm_loss"),
            LargestShare("masked_lm_unigram_accuracy", "target_counts"),
        )

    def predictor(self, model: Bert, params: Any, tokenizer: Tokenizer) -> FillMask:
        return FillMask(model, params, tokenizer, self.model_inputs)
