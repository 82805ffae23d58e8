"""Objective of extractive question answering: a start logit and an end logit per token (Devlin et al. 2019, §4.2 and
§4.3).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.metrics.spans import AnswerScores
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.base import Objective
from jaxformer.objectives.tagging import check_tokens
from jaxformer.predictors.answer_spans import INPUTS, SpanPredictor

LABELS = ("start", "end")
"""Label names that the model must have: each token has one logit for being the first token of the answer (`start`), and
one for being the last (`end`).
"""
NAMES = ("loss", "start_accuracy", "end_accuracy")


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective[Classifier]):
    """Extractive question answering: predicts the first and the last token of an answer."""

    longest: int = 30
    """Maximum number of tokens in a predicted answer."""
    no_answer: float | None = None
    """Threshold for predicting that a question has no answer, for example 0 (SQuAD 2.0): there is no answer if the
    score at [CLS] exceeds the score of the best span by more than it. If None, every question gets an answer (SQuAD
    1.1).
    """
    scored: int | None = None
    """Number of held-out questions, from the start of the data, that an evaluation answers and scores. If None, all are
    scored; if 0, none.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.longest", self.longest, 1)
        fields.at_least("objective.scored", self.scored, 0)

    model_inputs = INPUTS
    required = ("spannable", "starts", "ends", "weights")
    example_task = "AnswerSpans"

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        check_tokens(model, "QuestionAnswering")
        if model.labels != LABELS:
            raise InputError(f"model.labels={model.labels}: expected {LABELS} for objective=QuestionAnswering")
        self.check_arrays(row)

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats), averaged over start and end, and the accuracies of start and end.

        Each example is a question with a window of its context. Tokens outside the context, such as those of the
        question, have probability 0.

        Args:
          model: a token classifier with the labels start and end.
          params: model parameters.
          batch: tokens, segments, position_ids, token_types, spannable [batch, length], where spannable is 1 for tokens
            at which an answer may start or end; starts, ends, weights [batch, windows], where starts and ends are
            indices of tokens in the row.
          key: PRNG key for dropout. If None, there is no dropout.
        """
        output = self.apply_model(model, params, batch, key)
        logits = output.logits
        examples = jnp.arange(1, batch["weights"].shape[1] + 1)
        allowed = (batch["segments"][:, None] == examples[:, None]) & (batch["spannable"][:, None] > 0)  # [b, c, t]
        found = []
        for number, name in enumerate(("starts", "ends")):
            scores = jnp.where(allowed, logits[:, None, :, number], jnp.finfo(jnp.float32).min)
            shares = jax.nn.log_softmax(scores)
            loss = -jnp.take_along_axis(shares, batch[name][..., None], -1)[..., 0]
            found.append((loss, scores.argmax(-1) == batch[name]))
        (start_loss, start_right), (end_loss, end_right) = found
        values = (start_loss + end_loss) / 2, start_right, end_right
        means = {name: Mean.of(value, batch["weights"]) for name, value in zip(NAMES, values, strict=True)}
        return means | auxiliary(output)

    def metrics(self, model: Classifier) -> tuple[Metric, ...]:
        """Returns the loss and the accuracies of start and end, and for evaluations also the SQuAD scores (exact match
        and F1).
        """
        accuracies = (Average(name, higher_is_better=True) for name in ("start_accuracy", "end_accuracy"))
        of_documents = () if self.scored == 0 else (AnswerScores(self._answers, self.scored),)
        return Loss(), *accuracies, *of_documents

    def _answers(self, context: Context, pairs: Sequence[tuple[str, str]]) -> list[str]:
        predictor = self.predictor(context.model, context.params, context.tokenizer)
        answers = predictor.answer(context.task, pairs)
        return [answer.text for answer in answers]

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> SpanPredictor:
        return SpanPredictor(model, params, tokenizer, longest=self.longest, no_answer=self.no_answer)
