"""BERT's pretraining objective: masked tokens and next sentences (Devlin et al. 2019, §3.1)."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.losses.cross_entropy import class_cross_entropy, decoded_cross_entropy
from jaxformer.metrics.means import Mean
from jaxformer.models.bert import Bert
from jaxformer.predictors.fill_mask import Filled, demonstrate, encode, fill_masks
from jaxformer.predictors.padding import stacked

INPUTS = ("tokens", "segments", "position_ids", "token_types", "masked_positions", "cls_positions")

NAMES = ("masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy")


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predict the masked tokens, and whether the second sentence follows the first."""

    next_sentence: float = 1.0
    """Weight of the next-sentence loss beside the masked-LM loss; 0 leaves it out."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        weights = {"masked_lm_loss": 1.0, "next_sentence_loss": self.next_sentence}
        return {name: weight for name, weight in weights.items() if weight}

    def check(self, model: Bert, row: Collection[str]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
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

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Bert, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The losses (nats) and accuracies of a batch, as weighted means.

        Args:
          model: a BERT.
          params: its parameters.
          batch: tokens, segments, position_ids, token_types [b, t]; masked_positions, targets, weights [b, m];
            cls_positions, next_sentence, next_sentence_weights [b, c].
          key: for dropout; None evaluates, and adds how often each token was a target.
        """
        rngs = None if key is None else {"dropout": key}
        output = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs)
        targets, weights = batch["targets"], batch["weights"]
        tokens = decoded_cross_entropy(output.prediction, output.lm_head, targets, weights)
        means = {"masked_lm_loss": tokens.loss, "masked_lm_accuracy": tokens.accuracy}
        if key is None:
            counts = jnp.zeros(model.vocab).at[targets.reshape(-1)].add(weights.reshape(-1))
            means["target_counts"] = Mean(counts, weights.sum())
        if self.next_sentence:
            logits, labels = output.next_sentence_logits, batch["next_sentence"]
            loss, accuracy = class_cross_entropy(logits, labels, batch["next_sentence_weights"])
            means |= {"next_sentence_loss": loss, "next_sentence_accuracy": accuracy}
        return means

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means; the unigram accuracy is that of always guessing the commonest target."""
        values = {name: float(mean.value) for name, mean in means.items() if name in NAMES}
        loss = sum(weight * values[name] for name, weight in self.loss_weights.items())
        values["masked_lm_perplexity"] = math.exp(min(values["masked_lm_loss"], 700.0))
        if counts := means.get("target_counts"):
            values["masked_lm_unigram_accuracy"] = float(np.max(counts.sum) / max(np.sum(counts.sum), 1.0))
        return {"loss": loss, **values}

    def encode(self, model: Bert, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the texts, each between [CLS] and [SEP]."""
        rows = [encode(text, tokenizer, model.max_length) for text in texts]
        return stacked(rows)

    def predict(self, model: Bert, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Filled]:
        """Fills the blanks of each text."""
        return fill_masks(model, params, tokenizer, texts)

    def demonstrate(self, model: Bert, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few masked texts as the model fills them."""
        return demonstrate(model, params, tokenizer, batch, self.inputs)
