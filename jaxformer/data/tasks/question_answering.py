"""Extractive question answering task: answers are spans of a text (Rajpurkar et al. 2016; Devlin et al. 2019, §4.2)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import Template
from jaxformer.errors import FieldError, InputError, shown


@dataclasses.dataclass(frozen=True)
class Passage:
    """An encoded question and its context, without special tokens."""

    question: np.ndarray
    """Tokens of the question, int32 [tokens]."""
    context: np.ndarray
    """Tokens of the context, int32 [tokens]."""
    offsets: np.ndarray
    """Start and end (exclusive) of each context token, as character indices in the context, int32 [tokens, 2]."""
    answer: tuple[int, int] | None
    """Indices in `context` of the first and last token of the first answer. None if there is no answer."""
    size: int
    """Number of characters in the question and the context, which counts as their size in the cache of encoded
    documents.
    """


@dataclasses.dataclass(frozen=True)
class Window:
    """A question and a part of its context, laid out with special tokens so that they fit in a batch row. A long
    context is split into several overlapping windows.
    """

    tokens: np.ndarray
    """Tokens of the window, int32 [length]. For BERT: [CLS] question [SEP] context part [SEP]."""
    token_types: np.ndarray
    """Token type of each token, int32 [length]. For BERT, 1 in the context part and after it, otherwise 0."""
    before: int
    """Index in `tokens` of the first context token."""
    stop: int
    """Index in `tokens` after the last context token."""
    start: int
    """Index in the complete context of the window's first context token."""

    @property
    def spannable(self) -> np.ndarray:
        """Mask of the tokens where answers may start and end, int32 [length]: 1 in the context and at the first token.

        If the first token, such as [CLS], is predicted as the answer, the context contains no answer.
        """
        index = np.arange(len(self.tokens))
        return ((index == 0) | ((index >= self.before) & (index < self.stop))).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class AnswerSpans(Task[Passage]):
    """Predicts the first and last token of the answer to a question, in overlapping windows of its context.

    The source has the columns of SQuAD: a question, a context, and `answers` with the lists `text` and `answer_start`,
    the index in the context of each answer's first character. The first answer is the target; empty lists mean that the
    context does not contain an answer. In a window that does not contain the complete answer, [CLS] is the target.

    Batch rows: `tokens`, `token_types` and `spannable` int32 [batch, length], and the `segments` (the number of each
    token's example in the row) and `position_ids` that the data pipeline adds. `spannable` is 1 where answers may start
    and end: at [CLS] and in the context. `starts`, `ends` int32 [batch, examples_per_row] are the first and last token
    of the answer, as indices into the row. `weights` float32 [batch, examples_per_row] is 1 for each window.
    """

    length: int = 384
    """Number of tokens per batch row, which contains the question, a part of the context and special tokens."""
    stride: int = 128
    """Number of context tokens between the starts of two successive windows."""
    question_length: int = 64
    """Maximum number of question tokens. A longer question is truncated at its end."""
    question: str = "question"
    """Name of the column with the question."""
    context: str = "context"
    """Name of the column with the text that contains the answer."""
    answers: str = "answers"
    """Name of the column with the answers, a dict with the lists `text` and `answer_start`."""
    examples_per_row: int = 1
    """Number of windows (a question and a part of its context) per batch row. A number above 1 requires packing
    (`data.pack`).
    """

    def __post_init__(self):
        for name in ("stride", "question_length", "examples_per_row"):
            fields.at_least(f"data.task.{name}", getattr(self, name), 1)
        self._check_room(3)  # The number for BERT; `check` uses the number that the tokenizer adds.

    def _check_room(self, special: int) -> None:
        """Checks that a row of `length` tokens has room for the question, part of the context and `special` special
        tokens, and that consecutive windows do not skip context tokens (see `stride`). Raises InputError otherwise.
        """
        room = self.length - self.question_length - special
        if room < 1:
            problem = f"too short for a question of {self.question_length} tokens, {special} special ones and context"
            least = self.question_length + special + 1
            raise FieldError("data.task.length", f"={self.length}: {problem}; expected at least {least}")
        if self.stride > room:
            problem = f"skips tokens; expected at most {room}, the tokens of the context in a window"
            raise FieldError("data.task.stride", f"={self.stride}: {problem}")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        tokens, examples = Feature(self.length), Feature(self.examples_per_row)
        indices = dataclasses.replace(examples, offset=True)
        row = dict.fromkeys(("tokens", "token_types", "spannable"), tokens) | {"starts": indices, "ends": indices}
        return row | {"weights": dataclasses.replace(examples, dtype="float32")}

    @property
    def requirement(self) -> str:
        return f"example with text in {self.question!r} and {self.context!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        template = tokenizer.template("encoder")
        if isinstance(template.pair[0].content, str):
            raise InputError(
                "tokenizer: its template has no special token before a question, which means that there is no answer; "
                "expected one with a template such as [CLS] A [SEP] B [SEP]"
            )
        self._check_room(template.num_special_tokens(pair=True))
        layouts.check_packing(self.examples_per_row, pack)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, int]]]:
        """Returns the question, the context, and the answers as a list of (text, index of its first character in the
        context).

        Raises:
          InputError: If a column is missing, or an answer does not occur at its position in the context.
        """
        question = columns.text(example, self.question, "data.task.question")
        context = columns.value(example, self.context, "data.task.context")
        if isinstance(context, str):  # Not stripped: answers are given by their character indices.
            columns.check_text(context, f"column {self.context!r}")
        else:
            context = columns.text(example, self.context, "data.task.context")
        answers = self._answers(example)
        for text, start in answers:
            if not text.strip() or start < 0 or context[start : start + len(text)] != text:
                there = context[max(start, 0) :][: max(len(text), 1)][:60]
                raise InputError(
                    f"answer {text[:60]!r}: not in its context at character {start}, where {there!r} is; the question "
                    f"is {question[:60]!r}"
                )
        return question, context, answers

    def _answers(self, example: Mapping[str, Any]) -> list[tuple[str, int]]:
        answers = columns.value(example, self.answers, "data.task.answers")
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
            problem = f"the column holds {shown(answers)}; expected lists 'text' and 'answer_start', as in SQuAD"
            raise FieldError("data.task.answers", f"={self.answers!r}: {problem}")
        texts = columns.strings(answers, "text", "data.task.answers")
        starts = columns.items(answers, "answer_start", "data.task.answers")
        if len(texts) != len(starts):
            problem = f"{len(texts)} items in 'text' and {len(starts)} in 'answer_start'; expected equal numbers"
            raise FieldError("data.task.answers", f"={self.answers!r}: {problem}")
        for start in starts:
            if not isinstance(start, int) or isinstance(start, bool):
                problem = f"'answer_start' holds {shown(start)}; expected an integer"
                raise FieldError("data.task.answers", f"={self.answers!r}: {problem}")
        return list(zip(texts, starts, strict=True))

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        question, context, answers = self.read(example)
        start = max(0, context.rfind(". ", 0, answers[0][1]) + 1) if answers else 0
        return (f"{columns.first_words(question)}\t{columns.first_words(context[start:])}",)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        question, context, answers = self.read(example)
        return Demonstration((f"{question}\t{context}",), answers[0][0] if answers else "no answer")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Passage:
        question, context, answers = self.read(example)
        passage = encode_passage(question, context, tokenizer)
        if not answers or not len(passage.context):
            return passage
        text, start = answers[0]
        # An answer that begins or ends within a token includes the whole token.
        inside = (passage.offsets[:, 1] > start) & (passage.offsets[:, 0] < start + len(text))
        indices = np.flatnonzero(inside)
        return dataclasses.replace(passage, answer=(int(indices[0]), int(indices[-1])) if len(indices) else None)

    def examples(self, document: Passage, visit: Visit[Passage]) -> list[Example]:
        return [self._example(window, document.answer) for window in self.windows(document, visit.tokenizer)]

    def windows(self, passage: Passage, tokenizer: Tokenizer) -> list[Window]:
        """Splits the context of a passage into overlapping windows, each with the question. Returns an empty list if
        the question or the context is empty.
        """
        if not len(passage.question) or not len(passage.context):
            return []
        template, question = tokenizer.template("encoder"), passage.question[: self.question_length]
        room = self.length - len(question) - template.num_special_tokens(pair=True)
        last = max(len(passage.context) - room, 0)
        starts = [*range(0, last, self.stride), last]
        return [_window(template, question, passage.context[start : start + room], start) for start in starts]

    def _example(self, window: Window, answer: tuple[int, int] | None) -> Example:
        span = np.zeros(2, np.int32)
        if answer is not None:
            stop = window.start + window.stop - window.before
            if window.start <= answer[0] and answer[1] < stop:
                span = np.array(answer, np.int32) - window.start + window.before
        return {
            "tokens": window.tokens,
            "token_types": window.token_types,
            "spannable": window.spannable,
            "starts": span[:1],
            "ends": span[1:],
            "weights": np.ones(1, np.float32),
        }


def encode_passage(question: str, context: str, tokenizer: Tokenizer) -> Passage:
    """Encodes a question and its context. The `answer` of the result is None."""
    tokens, offsets = tokenizer.encode_with_offsets(context)
    return Passage(tokenizer.encode(question), tokens, offsets, None, len(question) + len(context))


def _window(template: Template, question: np.ndarray, part: np.ndarray, start: int) -> Window:
    laid = template.lay_out(question, part)
    before = laid.starts[1]
    return Window(laid.tokens, laid.token_types, before, before + len(part), start)
