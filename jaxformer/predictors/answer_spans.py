"""Answers to questions, as spans of a text."""

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
"""The arrays of a batch that the model takes."""
AROUND, SHOWN = 40, 4
"""Characters of the context to show on either side of an answer; examples of a demonstration."""


@dataclasses.dataclass(frozen=True)
class SpanAnswer(Answer):
    """A span of a context that answers a question."""

    question: str
    """As it was given."""
    context: str
    """As it was given."""
    start: int
    """The answer's first character in the context."""
    stop: int
    """The index after its last character; that of the first one if there is no answer."""
    probability: float
    """The product of those of its first and of its last token, among those of all windows."""

    @property
    def text(self) -> str:
        """The answer; empty where there is none."""
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
    """Tokens of an answer, at most."""
    no_answer: float | None = None
    """As of `QuestionAnswering`."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the windows of all texts, a row each; a text is as in `predict`."""
        task = answer_spans(self.model.max_length, self.tokenizer)
        windows = [
            part
            for pair in _pairs(texts)
            for part in task.windows(encode_passage(*pair, self.tokenizer), self.tokenizer)
        ]
        types = [part.token_types for part in windows]
        return stacked([part.tokens for part in windows], types)

    def predict(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Answers each text, a question and its context with a tab between the two.

        Raises:
          InputError: a text without a tab, or nothing before or after it.
        """
        return self.answer(answer_spans(self.model.max_length, self.tokenizer), _pairs(texts))

    def answer(self, task: AnswerSpans, pairs: Sequence[tuple[str, str]]) -> list[SpanAnswer]:
        """The best span of each (question, context) among all its windows, as the task cuts them."""
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
        """First character, the index after the last, and the probability."""
        if not scores:
            return 0, 0, 1.0
        ends = [np.concatenate([logits[part.spannable > 0, end] for part, logits in scores]) for end in (0, 1)]
        total = sum(float(np.logaddexp.reduce(end)) for end in ends)
        none = min(float(logits[0].sum()) for _, logits in scores)
        best, start, stop = -np.inf, 0, 0
        for part, logits in scores:
            score, first, last = best_span(*logits[part.before : part.stop].T, self.longest)
            if score > best:
                best, start, stop = score, part.start + first, part.start + last
        if self.no_answer is not None and none > best + self.no_answer:
            return 0, 0, float(np.exp(none - total))
        return int(passage.offsets[start, 0]), int(passage.offsets[stop, 1]), float(np.exp(min(best - total, 0)))

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out questions, the spans that the model finds in their windows, and the right ones."""
        batch = {name: np.asarray(array)[:SHOWN] for name, array in batch.items()}
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        logits = np.asarray(_logits(self.model, self.params, inputs))
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0] > 0):
            tokens = batch["tokens"][row]
            context = np.flatnonzero((batch["segments"][row] == 1) & (batch["spannable"][row] > 0))[1:]
            before = int(context[0])
            _, first, last = best_span(*logits[row, before : context[-1] + 1].T, self.longest)
            found, right = (before + first, before + last), (batch["starts"][row, 0], batch["ends"][row, 0])
            shown, wanted = (self.tokenizer.decode(tokens[start : stop + 1]) for start, stop in (found, right))
            wanted = f", was {wanted or '(no answer)'}" * (found != right)
            lines.append(f"{self.tokenizer.decode(tokens[:before])} [{shown}{wanted}]")
        return lines


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The question and the context of each text, which a tab separates."""
    pairs = [tuple(part.strip() for part in text.partition(PAIR)[::2]) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if not all(pair):
            raise InputError(f"{text[:60]!r}: expected a question, a tab, and the text that answers it")
    return pairs


def answer_spans(length: int, tokenizer: Tokenizer) -> AnswerSpans:
    """Windows that overlap by half, with at most a quarter of their tokens, and 64, for the question."""
    asked, special = min(64, length // 4), tokenizer.template("encoder").added(pair=True)
    return AnswerSpans(length, max(1, (length - asked - special) // 2), asked)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Classifier, params, batch) -> jax.Array:
    return model.apply({"params": params}, **batch).logits
