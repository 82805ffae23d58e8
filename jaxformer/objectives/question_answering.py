"""Answers as spans of a text: a start and an end by a classifier of tokens (Devlin et al. 2019, §4.2 and §4.3)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.classification import PAIR
from jaxformer.data.tasks.question_answering import AnswerSpans, Passage, encode_passage
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.means import Mean
from jaxformer.metrics.spans import best_span, exact_match, f1
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.tagging import check_tokens
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids", "token_types")
LABELS = ("start", "end")
"""What the classifier's two numbers of a token are for."""
NAMES = ("loss", "start_accuracy", "end_accuracy")
SCORES = {"exact_match": exact_match, "f1": f1}
AROUND, SHOWN = 40, 4
"""Characters of the context on either side of an answer that a person is shown; examples of a demonstration."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A span of a context that answers a question."""

    question: str
    """As it was given."""
    context: str
    """As it was given."""
    start: int
    """The answer's first character in the context."""
    stop: int
    """The character behind its last; the first one again where there is no answer."""
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


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
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

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        check_tokens(model, "QuestionAnswering")
        if model.labels != LABELS:
            raise InputError(f"model.labels={model.labels}: expected {LABELS} for objective=QuestionAnswering")
        if missing := [name for name in ("spannable", "starts", "ends", "weights") if name not in row]:
            raise InputError(f"objective=QuestionAnswering: the task's rows have no {missing[0]}; use AnswerSpans")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats), the mean of both ends', and how often each end is right, of a batch's windows.

        An end is one of the tokens at which answers may begin and end: no probability goes to the question.

        Args:
          model: a classifier that reads tokens, with the labels start and end.
          params: its parameters.
          batch: tokens, segments, position_ids, token_types, spannable [b, t]; starts, ends, weights [b, c].
          key: for dropout; None evaluates.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs).logits
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
        return {name: Mean.of(value, batch["weights"]) for name, value in zip(NAMES, values, strict=True)}

    def document_scores(
        self, model: Classifier, params, tokenizer: Tokenizer, task: AnswerSpans, documents: Sequence[Mapping[str, Any]]
    ) -> dict[str, Mean]:
        """SQuAD's exact match and F1 of whole documents: sums, and the number of questions for a weight."""
        count = len(documents) if self.scored is None else min(self.scored, len(documents))
        if not count and self.scored == 0:
            return {}
        columns = read_each(documents, task.read, range(count))
        answers = self.answer(model, params, tokenizer, task, [pair[:2] for pair in columns])
        references = [[text for text, _ in found] for *_, found in columns]
        return {
            name: Mean(
                np.float64(sum(score(one.text, right) for one, right in zip(answers, references, strict=True))),
                np.float64(count),
            )
            for name, score in SCORES.items()
        }

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means; SQuAD's scores from 0 to 100."""
        values = {name: float(means[name].value) for name in NAMES}
        return values | {name: 100 * float(means[name].value) for name in SCORES if name in means}

    def encode(self, model: Classifier, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the windows of all texts, a row each; a text is as in `predict`."""
        task = answer_spans(model.max_length, tokenizer)
        windows = [part for pair in _pairs(texts) for part in task.windows(encode_passage(*pair, tokenizer), tokenizer)]
        types = [part.token_types for part in windows]
        return stacked([part.tokens for part in windows], types)

    def predict(self, model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Answer]:
        """Answers each text, a question and its context with a tab between the two.

        Raises:
          InputError: a text without a tab, or nothing before it or behind it.
        """
        return self.answer(model, params, tokenizer, answer_spans(model.max_length, tokenizer), _pairs(texts))

    def answer(
        self, model: Classifier, params, tokenizer: Tokenizer, task: AnswerSpans, pairs: Sequence[tuple[str, str]]
    ) -> list[Answer]:
        """The best span of each (question, context) among all its windows, as the task cuts them."""
        passages = [encode_passage(*pair, tokenizer) for pair in pairs]
        windows = [(number, part) for number, one in enumerate(passages) for part in task.windows(one, tokenizer)]
        scores: list[list] = [[] for _ in pairs]
        rows, types = [part.tokens for _, part in windows], [part.token_types for _, part in windows]
        for places, batch in padded(rows, model.max_length, types):
            logits = np.asarray(_logits(model, params, batch), np.float64)
            for row, place in enumerate(places):
                number, part = windows[place]
                scores[number].append((part, logits[row, : len(part.tokens)]))
        return [
            Answer(*pair, *self._best(passage, found))
            for pair, passage, found in zip(pairs, passages, scores, strict=True)
        ]

    def _best(self, passage: Passage, scores: list) -> tuple[int, int, float]:
        """First character, the one behind the last, and the probability."""
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

    def demonstrate(self, model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out questions, the spans that the model finds in their windows, and the right ones."""
        batch = {name: np.asarray(array)[:SHOWN] for name, array in batch.items()}
        logits = np.asarray(_logits(model, params, self.inputs(batch)))
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0] > 0):
            tokens = batch["tokens"][row]
            context = np.flatnonzero((batch["segments"][row] == 1) & (batch["spannable"][row] > 0))[1:]
            before = int(context[0])
            _, first, last = best_span(*logits[row, before : context[-1] + 1].T, self.longest)
            found, right = (before + first, before + last), (batch["starts"][row, 0], batch["ends"][row, 0])
            shown, wanted = (tokenizer.decode(tokens[start : stop + 1]) for start, stop in (found, right))
            wanted = f", was {wanted or '(no answer)'}" * (found != right)
            lines.append(f"{tokenizer.decode(tokens[:before])} [{shown}{wanted}]")
        return lines


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The question and the context of each text, which a tab separates."""
    pairs = [tuple(part.strip() for part in text.partition(PAIR)[::2]) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if not all(pair):
            raise InputError(f"{text[:60]!r}: expected a question, a tab, and the text that answers it")
    return pairs


def answer_spans(length: int, tokenizer: Tokenizer) -> AnswerSpans:
    """Windows of so many tokens that overlap by half, with at most a quarter of them, and 64, for the question."""
    asked, special = min(64, length // 4), tokenizer.template("encoder").added(pair=True)
    return AnswerSpans(length, max(1, (length - asked - special) // 2), asked)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Classifier, params, batch) -> jax.Array:
    return model.apply({"params": params}, **batch).logits
