"""Answers as spans of a text: a start and an end by a classifier of tokens (Devlin et al. 2019, §4.2 and §4.3)."""

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
"""Meanings of the classifier's two logits of a token."""
NAMES = ("loss", "start_accuracy", "end_accuracy")


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective[Classifier]):
    """Predict the first and the last token of an answer."""

    longest: int = 30
    """Tokens of an answer, at most."""
    no_answer: float | None = None
    """By how much the score of no answer, at [CLS], must be above the best span's for none to be given, 0 for example
    (SQuAD 2.0); None: every question has an answer (SQuAD 1.1)."""
    scored: int | None = None
    """Held-out questions that an evaluation answers and scores, the first ones; None for all, 0 for none."""

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
        self.check_row(row)

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats), the mean of both ends', and how often each end is right, of a batch's windows.

        An end is one of the tokens at which answers may begin and end: no probability goes to the question.

        Args:
          model: a classifier that reads tokens, with the labels start and end.
          params: its parameters.
          batch: tokens, segments, position_ids, token_types, spannable [b, t]; starts, ends, weights [b, c].
          key: for dropout; None evaluates.
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
        """The loss, the accuracy of both ends, and in evaluations SQuAD's scores."""
        accuracies = (Average(name, higher_is_better=True) for name in ("start_accuracy", "end_accuracy"))
        of_documents = () if self.scored == 0 else (AnswerScores(self._answers, self.scored),)
        return Loss(), *accuracies, *of_documents

    def _answers(self, context: Context, pairs: Sequence[tuple[str, str]]) -> list[str]:
        predictor = self.predictor(context.model, context.params, context.tokenizer)
        answers = predictor.answer(context.task, pairs)
        return [answer.text for answer in answers]

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> SpanPredictor:
        return SpanPredictor(model, params, tokenizer, longest=self.longest, no_answer=self.no_answer)
