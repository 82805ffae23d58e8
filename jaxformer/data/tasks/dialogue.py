"""Dialogues as text: turns after the names of their speakers, for a decoder that learns the assistant's turns."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, InputError

Turn = tuple[str, str]
"""A role and its content."""
ANSWERS = "assistant"
"""The role whose turns are targets."""


@dataclasses.dataclass(frozen=True)
class DialogueTemplate:
    """The text before a turn of each role; the tokenizer's end token follows each turn."""

    system: str = "System:"
    """Text before the system prompt."""
    user: str = "User:"
    """Text before a user turn."""
    assistant: str = "Assistant:"
    """Text before an assistant turn."""

    def __post_init__(self):
        names = dataclasses.astuple(self)
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise FieldError("data.task.template", f"={names}: expected a different, non-empty text for each role")

    @property
    def roles(self) -> dict[str, str]:
        """The text before the turns of each role."""
        return dataclasses.asdict(self)

    def space(self, role: str) -> str:
        """The white space between the text before a turn and the turn; a space if the template has none."""
        before = self.roles[role]
        return before[len(before.rstrip()) :] or " "

    def text(self, turn: Turn) -> str:
        """A turn with the text before it."""
        role, content = turn
        return self.roles[role].rstrip() + (self.space(role) + content if content else "")

    def encode(self, turn: Turn, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """The tokens before a turn, and the turn's with its end token: int32 [m], [n]; encoded as one text."""
        tokens, offsets = tokenizer.encode_with_offsets(self.text(turn))
        size = int(np.sum(offsets[:, 0] < len(self.roles[turn[0]].rstrip())))
        return tokens[:size], layouts.ended(tokens[size:], tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """A dialogue and the beginning of its next answer, int32 [n], from a text.

        A line that begins with the name of a role begins a turn; lines before the first one are a user's.
        """
        parts = [part for turn in self.turns(text) for part in self.encode(turn, tokenizer)]
        return np.concatenate([*parts, tokenizer.encode(self.assistant.rstrip())]).astype(np.int32)

    def turns(self, text: str) -> list[Turn]:
        """The non-empty turns of a text."""
        found, role, lines = [], "user", []
        for line in text.strip().splitlines():
            new_role = next((name for name, before in self.roles.items() if line.startswith(before)), None)
            if new_role is not None:
                found.append((role, "\n".join(lines).strip()))
                role, lines = new_role, [line.removeprefix(self.roles[new_role])]
            else:
                lines.append(line)
        return [turn for turn in [*found, (role, "\n".join(lines).strip())] if turn[1]]


class Part(NamedTuple):
    """An encoded turn."""

    before: np.ndarray
    """int32 [m]: the tokens before the turn."""
    tokens: np.ndarray
    """int32 [n]: the turn and the end token."""
    learned: bool
    """Whether the turn is the assistant's, and so a target."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """The encoded turns of a dialogue."""

    parts: tuple[Part, ...]
    size: int
    """Characters of all turns."""


@dataclasses.dataclass(frozen=True)
class Dialogue(Task[Turns]):
    """The assistant's turns of a dialogue, each token predicted from everything before it; only they are targets.

    A source has a list of turns, each {"role": ..., "content": ...} with the role system, user or assistant. A dialogue
    that does not fit in a row is cut after answers; a question with its answers that does not fit loses its end.

    Rows: `tokens`, `targets` int32 and `weights` float32 [b, length], with the lanes' `segments` and `position_ids`;
    weights are 1 where a target belongs to an assistant's turn, its end token included.
    """

    length: int = 512
    """Tokens in a row."""
    messages: str = "messages"
    """Column of the source with the list of turns."""
    template: DialogueTemplate = DialogueTemplate()
    """The text around turns."""

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 8)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    @property
    def requirement(self) -> str:
        return f"dialogue with an answer in {self.messages!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos")

    def read(self, example: Mapping[str, Any]) -> list[Turn]:
        turns = []
        for number, message in enumerate(columns.items(example, self.messages, "data.task.messages")):
            role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
            if not isinstance(role, str) or role not in self.template.roles or not isinstance(content, str):
                roles = ", ".join(self.template.roles)
                raise InputError(f"turn {str(message)[:80]!r}: expected a role, one of {roles}, and a text as content")
            columns.check_text(content, f"turn {number}")
            turns.append((role, content.strip()))
        return turns

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        questions = [content for role, content in self.read(example) if role == "user"]
        return tuple(map(columns.first_words, questions[:1]))

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Turns:
        turns = self.read(example)
        encoded = [Part(*self.template.encode(turn, tokenizer), turn[0] == ANSWERS) for turn in turns]
        return Turns(tuple(encoded), sum(len(content) for _, content in turns))

    def examples(self, document: Turns, visit: Visit[Turns]) -> list[Example]:
        return [example for row in self._rows(document) if (example := self._example(row)) is not None]

    def _rows(self, document: Turns) -> list[list[Part]]:
        """The turns of each row, in order."""
        rows, size = [[]], 0
        for exchange in _exchanges(document.parts):
            more = len(_joined(exchange))
            if rows[-1] and size + more > self.length + 1:
                rows.append([])
                size = 0
            rows[-1] += exchange
            size += more
        return rows

    def _example(self, parts: Sequence[Part]) -> Example | None:
        """The example of some turns; None if it has no target."""
        ids = _joined(parts)[: self.length + 1]
        learned = [np.repeat([False, part.learned], [len(part.before), len(part.tokens)]) for part in parts]
        weights = np.concatenate([[], *learned])[1 : len(ids)].astype(np.float32)
        if not weights.any():
            return None
        return layouts.text_example(ids) | {"weights": weights}


def _exchanges(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Groups of turns, each a question with the answers after it."""
    exchange = []
    for part in parts:
        if exchange and exchange[-1].learned and not part.learned:
            yield exchange
            exchange = []
        exchange.append(part)
    if exchange:
        yield exchange


def _joined(parts: Sequence[Part]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *(array for part in parts for array in part[:2])]).astype(np.int32)
