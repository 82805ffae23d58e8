"""Extractive question answering: spans of texts that answer (Rajpurkar et al. 2016; Devlin et al. 2019, §4.2)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.messages import shown
from jaxformer.data.sources import files
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import Template
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Passage:
    """A question and its context, encoded without special tokens."""

    question: np.ndarray
    """int32 [q]."""
    context: np.ndarray
    """int32 [n]."""
    offsets: np.ndarray
    """int32 [n, 2]: the characters of the context that each of its tokens stands for."""
    answer: tuple[int, int] | None
    """The first and the last token of the first answer, as indices into `context`; None where there is no answer."""
    size: int
    """Characters of both."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A question and a part of its context, as a model reads them."""

    tokens: np.ndarray
    """int32 [t]: the question and the part with special tokens, for BERT [CLS] question [SEP] part [SEP]."""
    token_types: np.ndarray
    """int32 [t], as the tokenizer's template has them; BERT's are 1 from the part on."""
    before: int
    """Index of the part's first token."""
    stop: int
    """Index after the part's last token."""
    start: int
    """Index in the context of the part's first token."""

    @property
    def spannable(self) -> np.ndarray:
        """int32 [t]: 1 at the first token, [CLS], which stands for no answer, and in the context."""
        index = np.arange(len(self.tokens))
        return ((index == 0) | ((index >= self.before) & (index < self.stop))).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class AnswerSpans(Task):
    """The first and the last token of a question's answer, in windows of its context that overlap.

    A source has the columns of SQuAD: a question, a context, and `answers` with lists `text` and `answer_start`, the
    first character of each in the context; the first answer is learned, and empty lists are no answer. In a window
    without the answer, or with a part of it, [CLS] is the answer.

    Rows: `tokens`, `token_types` and `spannable` int32 [b, length], with the lanes' `segments` and `position_ids`;
    `spannable` is 1 where answers may begin and end: at [CLS] and in the context. `starts`, `ends` int32 and `weights`
    float32 [b, examples_per_row]: first and last token of the answer, as indices into the row.
    """

    length: int = 384
    """Tokens a row: the question, the context and the special tokens around them."""
    stride: int = 128
    """Tokens of the context from the beginning of a window to that of the next."""
    question_length: int = 64
    """Tokens of a question, at most; a longer one loses its end."""
    question: str = "question"
    """Column with the question."""
    context: str = "context"
    """Column with the text that answers it."""
    answers: str = "answers"
    """Column with the answers."""
    examples_per_row: int = 1
    """Examples a row has room for; more than one only with packing."""

    def __post_init__(self):
        for name, least in (("stride", 1), ("question_length", 1), ("examples_per_row", 1)):
            layouts.at_least(name, getattr(self, name), least)
        self._check_room(3)  # BERT's; `check` knows how many the tokenizer adds.

    def _check_room(self, special: int) -> None:
        """Raises InputError if windows with so many special tokens have no room for the context or skip some of it."""
        room = self.length - self.question_length - special
        if room < 1:
            raise InputError(
                f"task.length {self.length}: too short for a question of {self.question_length} tokens, {special} "
                f"special ones and context; at least {self.question_length + special + 1}"
            )
        if self.stride > room:
            raise InputError(
                f"task.stride {self.stride}: skips tokens; at most {room}, what a window has of the context after a "
                "question of task.question_length"
            )

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        tokens, examples = Feature(self.length), Feature(self.examples_per_row)
        places = dataclasses.replace(examples, offset=True)
        row = dict.fromkeys(("tokens", "token_types", "spannable"), tokens) | {"starts": places, "ends": places}
        return row | {"weights": dataclasses.replace(examples, dtype="float32")}

    @property
    def need(self) -> str:
        return f"example with text in {self.question!r} and {self.context!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        template = tokenizer.template("encoder")
        if isinstance(template.pair[0].content, str):
            raise InputError(
                "the tokenizer puts no special token before a question, which stands for no answer; expected one with "
                "a template such as [CLS] A [SEP] B [SEP]"
            )
        self._check_room(template.added(pair=True))
        layouts.check_packing(self.examples_per_row, pack)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, int]]]:
        """Question, context, and the answers with their first characters.

        Raises:
            InputError: no such columns, or an answer that is not where it should be in the context.
        """
        question = files.text(example, self.question, "task.question")
        context = files.value(example, self.context, "task.context")
        if isinstance(context, str):  # as it is: answers say at which of its characters they begin
            files.check_text(context, f"column {self.context!r}")
        else:
            context = files.text(example, self.context, "task.context")
        answers = self._answers(example)
        for text, start in answers:
            if not text.strip() or start < 0 or context[start : start + len(text)] != text:
                raise InputError(
                    f"answer {text[:60]!r}: not in its context at character {start}, where "
                    f"{context[max(start, 0) :][: max(len(text), 1)][:60]!r} is; the question is {question[:60]!r}"
                )
        return question, context, answers

    def _answers(self, example: Mapping[str, Any]) -> list[tuple[str, int]]:
        answers = files.value(example, self.answers, "task.answers")
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
            raise InputError(
                f"column {self.answers!r} holds {shown(answers)}; expected lists 'text' and 'answer_start', as SQuAD "
                "has them: set task.answers"
            )
        texts = files.strings(answers, "text", "task.answers")
        starts = files.items(answers, "answer_start", "task.answers")
        if len(texts) != len(starts):
            raise InputError(
                f"column {self.answers!r} has {len(texts)} items in 'text' and {len(starts)} in 'answer_start'; "
                "expected as many"
            )
        for start in starts:
            if not isinstance(start, int) or isinstance(start, bool):
                raise InputError(f"column {self.answers!r}: 'answer_start' holds {shown(start)}; expected an integer")
        return list(zip(texts, starts, strict=True))

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        question, context, answers = self.read(example)
        start = max(0, context.rfind(". ", 0, answers[0][1]) + 1) if answers else 0
        return (f"{files.first_words(question)}\t{files.first_words(context[start:])}",)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Passage:
        question, context, answers = self.read(example)
        passage = encode_passage(question, context, tokenizer)
        if not answers or not len(passage.context):
            return passage
        text, start = answers[0]
        # An answer that is a part of tokens is all of them.
        inside = (passage.offsets[:, 1] > start) & (passage.offsets[:, 0] < start + len(text))
        places = np.flatnonzero(inside)
        return dataclasses.replace(passage, answer=(int(places[0]), int(places[-1])) if len(places) else None)

    def examples(
        self,
        document: Passage,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Passage],
    ) -> list[Example]:
        return [self._example(window, document.answer) for window in self.windows(document, tokenizer)]

    def windows(self, passage: Passage, tokenizer: Tokenizer) -> list[Window]:
        """The windows of a passage, which have all of its context's tokens; none where question or context is empty."""
        if not len(passage.question) or not len(passage.context):
            return []
        template, question = tokenizer.template("encoder"), passage.question[: self.question_length]
        room = self.length - len(question) - template.added(pair=True)
        last = max(len(passage.context) - room, 0)
        starts = [*range(0, last, self.stride), last]
        return [_window(template, question, passage.context[start : start + room], start) for start in starts]

    def _example(self, window: Window, answer: tuple[int, int] | None) -> Example:
        places = np.zeros(2, np.int32)
        if answer is not None:
            stop = window.start + window.stop - window.before
            if window.start <= answer[0] and answer[1] < stop:
                places = np.array(answer, np.int32) - window.start + window.before
        return {
            "tokens": window.tokens,
            "token_types": window.token_types,
            "spannable": window.spannable,
            "starts": places[:1],
            "ends": places[1:],
            "weights": np.ones(1, np.float32),
        }


def encode_passage(question: str, context: str, tokenizer: Tokenizer) -> Passage:
    """A question and its context, without an answer."""
    tokens, offsets = tokenizer.encode_with_offsets(context)
    return Passage(tokenizer.encode(question), tokens, offsets, None, len(question) + len(context))


def _window(template: Template, question: np.ndarray, part: np.ndarray, start: int) -> Window:
    laid = template.lay_out(question, part)
    before = laid.starts[1]
    return Window(laid.tokens, laid.token_types, before, before + len(part), start)
