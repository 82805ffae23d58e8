"""Objective of causal language models: next-token prediction (Radford et al. 2019)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from jaxformer import fields
from jaxformer.data.tasks.turns import TurnTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.losses.token_loss import check_terms, token_means
from jaxformer.metrics.averages import token_metrics
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.base import Objective
from jaxformer.predictors.continuation import Continuation


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective[Gpt]):
    """Causal language modeling: predicts each token from the tokens before it."""

    label_smoothing: float = 0.0
    """Share of the target probability that is distributed uniformly over the vocabulary (Szegedy et al. 2016)."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the softmax denominator, which keeps logits small. PaLM uses 1e-4."""
    prompt: Literal["text", "prefix", "inputs"] = "text"
    """Kind of prompt. `text`: the start of a text. `prefix`: the start of a text, with bidirectional attention within
    the prompt (prefix language model). `inputs`: a text that ends in an EOS token, with bidirectional attention within
    the prompt (text-to-text model).
    """
    beginning: bool = False
    """Whether prompts begin with the BOS token. Set it if the training texts begin with it."""
    template: TurnTemplate | None = None
    """Template that formats dialogues as text. Must be the template of the `Dialogue` task that the model was trained
    on. A prompt is then a dialogue or a user message, and the model generates the answer. If None, the model continues
    texts.
    """
    decoding: Decoding = Decoding(temperature=0.8, top_p=0.95)
    """Settings for generating text with the trained model. They have no effect on training."""

    def __post_init__(self):
        fields.check(self)
        check_terms(self)
        if self.template is not None and self.prompt != "text":
            raise InputError(f"objective.prompt={self.prompt}: expected text with a template of dialogues")

    model_inputs = ("tokens", "segments", "position_ids", "prefix")
    required = ("tokens", "targets", "weights")
    example_task = "one such as NextToken"

    def check_model(self, model: Gpt) -> None:
        if not model.is_generative or model.is_encoder_decoder:
            raise self.wrong_model(model, "a Gpt or another decoder")

    def check(self, model: Gpt, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        if "inputs" in row:
            raise InputError("objective=CausalLM: the task's rows have inputs for an encoder; set input_length=None")
        if ("prefix" in row) != (self.prompt != "text"):
            expected = "prefix or inputs" if "prefix" in row else "text"
            raise InputError(f"objective.prompt={self.prompt}: expected {expected} for the task's rows")

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = super().inputs(batch)
        return found | {"prefix": found["prefix"] > 0} if "prefix" in found else found

    def __call__(self, model: Gpt, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss and the cross-entropy (both in nats) and the accuracy of a batch, as weighted means. Only
        the loss includes label smoothing and the z-loss.

        Args:
          model: a GPT.
          params: model parameters.
          batch: tokens, targets, weights, segments, position_ids [batch, length], and optionally prefix
            [batch, length].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        return token_means(self, model, params, batch, key)

    def metrics(self, model: Gpt) -> tuple[Metric, ...]:
        return token_metrics()

    def predictor(self, model: Gpt, params: Any, tokenizer: Tokenizer) -> Continuation:
        return Continuation(
            model,
            params,
            tokenizer,
            decoding=self.decoding,
            prompt=self.prompt,
            beginning=self.beginning,
            template=self.template,
        )
