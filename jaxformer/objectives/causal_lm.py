"""The objective of a causal language model: every next token (Radford et al. 2019)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from jaxformer import fields
from jaxformer.data.tasks.dialogue import DialogueTemplate
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
    """Predict each next token."""

    label_smoothing: float = 0.0
    """Share of the target's probability that all tokens divide (Szegedy et al. 2016)."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the partition function, which keeps logits small; PaLM has 1e-4."""
    prompt: Literal["text", "prefix", "inputs"] = "text"
    """The kind of prompt: the beginning of a text; one whose tokens see each other both ways (rows of a prefix language
    model); or inputs to answer, which do so too and have an end token (rows of text to text)."""
    beginning: bool = False
    """Begin prompts with the tokenizer's beginning token, for a model that has learned from texts that do."""
    template: DialogueTemplate | None = None
    """How dialogues are written, as in the rows of `Dialogue`: a prompt is one, or what a user says, and the model
    answers. None: it continues texts."""
    decoding: Decoding = Decoding(temperature=0.8, top_p=0.95)
    """How it writes; changes nothing in training."""

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
        """The loss and cross-entropy (nats) and the accuracy of a batch, as weighted means.

        Args:
          model: a GPT.
          params: its parameters.
          batch: tokens, targets, weights, segments, position_ids [b, t], and perhaps prefix [b, t].
          key: for dropout; None evaluates.
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
