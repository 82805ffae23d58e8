"""Objective of direct preference optimization (DPO, Rafailov et al. 2023): trains a language model on pairs of a better
and a worse answer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tasks.turns import TurnTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import FieldError
from jaxformer.losses.sequence_log_probability import sequence_log_probabilities
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.base import Objective
from jaxformer.predictors.continuation import Continuation

SIDES = {
    "chosen": ("tokens", "segments", "position_ids", "targets", "weights"),
    "rejected": ("inputs", "input_segments", "input_position_ids", "rejected_targets", "rejected_weights"),
}
"""Maps the two answers of a pair to the names of their arrays in a batch: tokens, segments, position ids, targets and
weights.
"""
REFERENCE = {side: f"{side}_reference" for side in SIDES}
"""Maps the two answers of a pair to the names of the arrays with their log-probabilities under the reference model."""


@dataclasses.dataclass(frozen=True)
class Dpo(Objective[Gpt]):
    """Direct preference optimization (Rafailov et al. 2023): makes the chosen answer of each pair more likely than the
    rejected one, compared with the reference model. The reference model has the parameters that the training starts
    from (`init`).

    The reward of an answer is β · (log-probability − log-probability under the reference model). The loss of a pair is
    −log σ(reward of the chosen answer − reward of the rejected answer).
    """

    beta: float = 0.1
    """Strength β of the constraint that keeps the model close to the reference model. Higher values keep it closer."""
    label_smoothing: float = 0.0
    """Assumed probability that the two answers of a pair are interchanged (conservative DPO, Mitchell 2023)."""
    beginning: bool = False
    """Whether prompts begin with the BOS token. Set it if the training texts begin with it."""
    template: TurnTemplate | None = None
    """Template that formats dialogues as text. Must be the template of the `Preferences` task. If None, the answers
    continue plain texts.
    """
    decoding: Decoding = Decoding(temperature=0.8, top_p=0.95)
    """Settings for generating text with the trained model. They have no effect on training."""

    def __post_init__(self):
        fields.check(self)
        if not self.beta > 0:
            raise FieldError("objective.beta", f"={self.beta}: expected above 0")
        fields.within("objective.label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    model_inputs = ("tokens", "segments", "position_ids")
    required = ("tokens", "targets", "weights", "inputs", "rejected_targets", "rejected_weights")
    example_task = "Preferences"
    needs_reference = True

    def check_model(self, model: Gpt) -> None:
        if not model.is_generative or model.is_encoder_decoder:
            raise self.wrong_model(model, "a Gpt or another decoder")

    def with_reference(self, model: Gpt, reference: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Adds the log-probabilities of both answers under the reference model, `chosen_reference` and
        `rejected_reference`, float32 [batch].
        """
        found, _ = self._log_probabilities(model, reference, batch, None)
        return {**batch, **{REFERENCE[side]: jax.lax.stop_gradient(values) for side, values in found.items()}}

    def __call__(self, model: Gpt, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats), the rewards of both answers, their difference (margin), and the share of pairs
        whose chosen answer has the higher reward (accuracy), as weighted means.

        Args:
          model: a GPT.
          params: model parameters.
          batch: the arrays of the task `Preferences`, and those of `with_reference`.
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        found, output = self._log_probabilities(model, params, batch, key)
        rewards = {side: self.beta * (values - batch[REFERENCE[side]]) for side, values in found.items()}
        margin = rewards["chosen"] - rewards["rejected"]
        losses = -(1 - self.label_smoothing) * jax.nn.log_sigmoid(margin)
        if self.label_smoothing:
            losses -= self.label_smoothing * jax.nn.log_sigmoid(-margin)
        weights = batch["weights"].max(-1) * batch["rejected_weights"].max(-1)
        means = {"loss": losses, "accuracy": margin > 0, "margin": margin}
        means |= {f"{side}_reward": values for side, values in rewards.items()}
        return {name: Mean.of(values, weights) for name, values in means.items()} | auxiliary(output)

    def metrics(self, model: Gpt) -> tuple[Metric, ...]:
        higher = (Average(name, higher_is_better=True) for name in ("accuracy", "margin", "chosen_reward"))
        return Loss(), *higher, Average("rejected_reward")

    def predictor(self, model: Gpt, params: Any, tokenizer: Tokenizer) -> Continuation:
        return Continuation(
            model, params, tokenizer, decoding=self.decoding, beginning=self.beginning, template=self.template
        )

    def _log_probabilities(
        self, model: Gpt, params: Any, batch: Mapping[str, jax.Array], key: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Computes the log-probability of each answer, float32 [batch], keyed by `chosen` and `rejected`. Returns them
        and the output of the model, for both answers of all pairs at once.
        """
        rows = len(batch["tokens"])
        both = [  # The answers of a pair are rows of the same device.
            jnp.stack([batch[name] for name in names], axis=1).reshape(2 * rows, -1)
            for names in zip(*SIDES.values(), strict=True)
        ]
        tokens, segments, position_ids, targets, weights = both
        inputs = {"tokens": tokens, "segments": segments, "position_ids": position_ids}
        output = self.apply_model(model, params, inputs, key)
        found = sequence_log_probabilities(output.hidden, output.lm_head, targets, weights).reshape(rows, 2)
        return {side: found[:, number] for number, side in enumerate(SIDES)}, output
