"""Answers questions with spans of a given text (extractive question answering)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks.classification import PAIR
from jaxformer.data.tasks.question_answering import AnswerSpans, Passage, encode_passage
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.spans import best_span
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids", "token_types")
"""Names of the batch arrays that are passed to the model."""
AROUND, SHOWN = 40, 4
"""Number of context characters to print on each side of an answer, and maximum number of questions shown in a
demonstration.
"""


@dataclasses.dataclass(frozen=True)
class SpanAnswer(Answer):
    """Answer to a question: a span of the given context."""

    question: str
    """Question in the request."""
    context: str
    """Text of the request in which the answer was searched."""
    start: int
    """Index of the answer's first character in the context."""
    stop: int
    """Index after the answer's last character in the context. Equal to `start` if there is no answer."""
    probability: float
    """Product of the probabilities of the first and last token, each normalised over all windows of the context."""

    @property
    def text(self) -> str:
        """Text of the answer. Empty if there is no answer."""
        return self.context[self.start : self.stop]

    def __str__(self) -> str:
        if not self.text:
            return f"{self.question}\n  {self.probability:6.1%}  (no answer)"
        before = self.context[max(self.start - AROUND, 0) : self.start]
        after = self.context[self.stop : self.stop + AROUND]
        shown = f"{'…' * (self.start > AROUND)}{before}[{self.text}]{after}"
        shown += "…" * (self.stop + AROUND < len(self.context))
        return f"{self.question}\n  {self.probability:6.1%}  {self.text}\n          {' '.join(shown.split())}"


@dataclasses.dataclass(frozen=True, eq=False)
class SpanPredictor(Predictor[Classifier]):
    """Finds the span of a text that answers a question."""

    longest: int = 30
    """Maximum number of tokens of an answer."""
    no_answer: float | None = None
    """Threshold for predicting no answer, see `QuestionAnswering.no_answer`."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts requests to the arguments of the model, with one row per window of the context. Same requests as in
        `predict`.
        """
        task = answer_spans(self.model.max_length, self.tokenizer)
        windows = [
            part
            for pair in _pairs(texts)
            for part in task.windows(encode_passage(*pair, self.tokenizer), self.tokenizer)
        ]
        types = [part.token_types for part in windows]
        return stacked([part.tokens for part in windows], types)

    def predict(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Answers each request: a question and its context, separated by a tab.

        Raises:
          InputError: If a text has no tab, or nothing before or after it.
        """
        return self.answer(answer_spans(self.model.max_length, self.tokenizer), _pairs(texts))

    def answer(self, task: AnswerSpans, pairs: Sequence[tuple[str, str]]) -> list[SpanAnswer]:
        """Finds the best span of each (question, context) pair over all windows into which `task` divides the
        context.
        """
        passages = [encode_passage(*pair, self.tokenizer) for pair in pairs]
        windows = [(number, part) for number, one in enumerate(passages) for part in task.windows(one, self.tokenizer)]
        scores: list[list] = [[] for _ in pairs]
        rows, types = [part.tokens for _, part in windows], [part.token_types for _, part in windows]
        for places, batch in padded(rows, self.model.max_length, types):
            logits = np.asarray(_logits(self.model, self.params, batch), np.float64)
            for row, place in enumerate(places):
                number, part = windows[place]
                scores[number].append((part, logits[row, : len(part.tokens)]))
        return [
            SpanAnswer(*pair, *self._best(passage, found))
            for pair, passage, found in zip(pairs, passages, scores, strict=True)
        ]

    def _best(self, passage: Passage, scores: list) -> tuple[int, int, float]:
        """Finds the best answer span over all windows of a context.

        Args:
          passage: question and context.
          scores: pairs of a window and its start and end logits, [length, 2].

        Returns:
          Start and end index of the span in characters, and its probability.
        """
        if not scores:
            return 0, 0, 1.0
        ends = [np.concatenate([logits[part.spannable > 0, end] for part, logits in scores]) for end in (0, 1)]
        total = sum(float(np.logaddexp.reduce(end)) for end in ends)
        none = min(float(logits[0].sum()) for _, logits in scores)
        best, start, stop = -np.inf, 0, 0
        for part, logits in scores:
            score, first, last = _best(logits[part.before : part.stop], self.longest)
            if score > best:
                best, start, stop = score, part.start + first, part.start + last
        if self.no_answer is not None and none > best + self.no_answer:
            return 0, 0, float(np.exp(none - total))
        return int(passage.offsets[start, 0]), int(passage.offsets[stop, 1]), float(np.exp(min(best - total, 0)))

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Formats a few held-out questions with the predicted spans, and the true spans if they differ."""
        batch = {name: np.asarray(array)[:SHOWN] for name, array in batch.items()}
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        logits = np.asarray(_logits(self.model, self.params, inputs))
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0] > 0):
            tokens = batch["tokens"][row]
            context = np.flatnonzero((batch["segments"][row] == 1) & (batch["spannable"][row] > 0))[1:]
            before = int(context[0])
            _, first, last = _best(logits[row, before : context[-1] + 1], self.longest)
            found, right = (before + first, before + last), (batch["starts"][row, 0], batch["ends"][row, 0])
            shown, wanted = (self.tokenizer.decode(tokens[start : stop + 1]) for start, stop in (found, right))
            wanted = f", was {wanted or '(no answer)'}" * (found != right)
            lines.append(f"{self.tokenizer.decode(tokens[:before])} [{shown}{wanted}]")
        return lines


def _best(logits: np.ndarray, longest: int) -> tuple[float, int, int]:
    """Finds the answer span with the highest score. `logits` are the start and end logits of a window, [length, 2]. See
    `best_span`.
    """
    return best_span(logits[:, 0], logits[:, 1], longest)


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Splits each request at its tab into question and context."""
    pairs = []
    for text in texts:
        question, _, context = (part.strip() for part in text.partition(PAIR))
        if not question or not context:
            raise InputError(f"{text[:60]!r}: expected a question, a tab, and the text that answers it")
        pairs.append((question, context))
    return pairs


def answer_spans(length: int, tokenizer: Tokenizer) -> AnswerSpans:
    """Creates a question answering task for rows of `length` tokens, in which windows overlap by half. Questions are
    limited to 64 tokens or a quarter of `length`, whichever is smaller.
    """
    asked, special = min(64, length // 4), tokenizer.template("encoder").added(pair=True)
    return AnswerSpans(length, max(1, (length - asked - special) // 2), asked)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Classifier, params, batch) -> jax.Array:
    return model.apply({"params": params}, **batch).logits
