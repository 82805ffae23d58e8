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
"""Names of the batch arrays that are passed to the question answering model."""
AROUND, MAX_EXAMPLES = 40, 4
"""Number of context characters to print before and after an answer (`AROUND`), and maximum number of held-out questions
shown in a demonstration (`MAX_EXAMPLES`).
"""


@dataclasses.dataclass(frozen=True)
class SpanAnswer(Answer):
    """Answer to a question: a span of the context that was given with the question."""

    question: str
    """The question, as given in the request."""
    context: str
    """Text in which the answer was searched, as given in the request."""
    start: int
    """Index of the answer's first character in the context."""
    stop: int
    """End index (exclusive) of the answer in the characters of the context. Equal to `start` if there is no answer."""
    probability: float
    """Product of the probabilities of the first and the last token. Each is normalised over all tokens of the context,
    including those of all windows into which a long context is divided.
    """

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
    """Predictor of extractive question answering: finds the span of a context that answers a question."""

    longest: int = 30
    """Maximum number of tokens in an answer."""
    no_answer: float | None = None
    """Threshold of the score by which "no answer" must exceed the best span to be predicted. If None, every question
    gets an answer. See `QuestionAnswering.no_answer`.
    """

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts requests (see `predict`) to the arguments of the model. A long context is divided into windows, and
        the arrays have one row per window.
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
        """Answers requests. Each text is a question and its context, separated by a tab.

        Raises:
          InputError: If a text has no tab, or nothing before or after it.
        """
        return self.answer(answer_spans(self.model.max_length, self.tokenizer), _pairs(texts))

    def answer(self, task: AnswerSpans, pairs: Sequence[tuple[str, str]]) -> list[SpanAnswer]:
        """Finds the answer to each question in its context. `pairs` contains (question, context). `task` divides a long
        context into windows, and the best span of all windows is the answer.
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
        """Finds the best answer to a question in all windows of its context.

        Args:
          passage: tokens of the question and of the context.
          scores: for each window, a pair of the window and the start and end logits of its tokens, [length, 2].

        Returns:
          Start index and (exclusive) end index of the answer in the characters of the context, both 0 if there is no
          answer, and its probability.
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
        """Answers the questions in the first rows of a held-out batch, and formats them for display. The correct
        answers are shown if the predicted ones differ.
        """
        batch = {name: np.asarray(array)[:MAX_EXAMPLES] for name, array in batch.items()}
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
    """Finds the answer span with the highest score in one window. `logits` are the start and end logits of its context
    tokens, [length, 2]. Returns the score, and the indices of the first and the last token (see `best_span`).
    """
    return best_span(logits[:, 0], logits[:, 1], longest)


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Splits the text of each request at its first tab into (question, context). Raises InputError if one of them is
    empty.
    """
    pairs = []
    for text in texts:
        question, _, context = (part.strip() for part in text.partition(PAIR))
        if not question or not context:
            raise InputError(f"{text[:60]!r}: expected a question, a tab, and the text that answers it")
        pairs.append((question, context))
    return pairs


def answer_spans(length: int, tokenizer: Tokenizer) -> AnswerSpans:
    """Creates a question answering task that divides contexts into windows. Rows, which contain the question and a
    window, have up to `length` tokens, and windows overlap by half. Questions are limited to 64 tokens or a quarter of
    `length`, whichever is smaller.
    """
    asked, special = min(64, length // 4), tokenizer.template("encoder").num_special_tokens(pair=True)
    return AnswerSpans(length, max(1, (length - asked - special) // 2), asked)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Classifier, params, batch) -> jax.Array:
    return model.apply({"params": params}, **batch).logits
