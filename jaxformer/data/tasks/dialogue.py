"""Dialogue task: formats dialogues as text with a role name before each turn. A decoder learns to generate the
assistant turns.
"""

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
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, InputError

Turn = tuple[str, str]
"""Role and content of a turn, such as ("user", "Hello")."""
ANSWERS = "assistant"
"""Role whose turns are the training targets, so that the model learns to generate them."""


@dataclasses.dataclass(frozen=True)
class DialogueTemplate:
    """Texts that are written before the turns of each role (role texts), such as "User:" before a user turn. An EOS
    token follows each turn.
    """

    system: str = "System:"
    """Text that is written before each system prompt."""
    user: str = "User:"
    """Text that is written before each turn of the user."""
    assistant: str = "Assistant:"
    """Text that is written before each turn of the assistant."""

    def __post_init__(self):
        names = dataclasses.astuple(self)
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise FieldError("data.task.template", f"={names}: expected a different, non-empty text for each role")

    @property
    def roles(self) -> dict[str, str]:
        """Maps each role (system, user, assistant) to the text that is written before its turns."""
        return dataclasses.asdict(self)

    def space(self, role: str) -> str:
        """Returns the white space at the end of a role's text, which separates it from the content of a turn. If the
        text does not end in white space, returns a single space.
        """
        before = self.roles[role]
        return before[len(before.rstrip()) :] or " "

    def text(self, turn: Turn) -> str:
        """Formats a turn as text: the text of its role, such as "User:", followed by the content of the turn."""
        role, content = turn
        return self.roles[role].rstrip() + (self.space(role) + content if content else "")

    def encode(self, turn: Turn, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a turn as one text: the text of its role, such as "User:", followed by the content.

        Returns:
          Tokens of the role text, int32 [tokens], and tokens of the content with the EOS token, int32 [tokens].
        """
        tokens, offsets = tokenizer.encode_with_offsets(self.text(turn))
        size = int(np.sum(offsets[:, 0] < len(self.roles[turn[0]].rstrip())))
        return tokens[:size], layouts.ended(tokens[size:], tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """Encodes a text as a dialogue that ends with the role text of the assistant, so that a model continues with an
        answer. Returns int32 [tokens].

        A line that begins with the role text of a role, such as "User:", starts a new turn. Lines before the first such
        line are a user turn.
        """
        parts = [part for turn in self.turns(text) for part in self.encode(turn, tokenizer)]
        return np.concatenate([*parts, tokenizer.encode(self.assistant.rstrip())]).astype(np.int32)

    def turns(self, text: str) -> list[Turn]:
        """Splits a text into its turns, and leaves out empty turns. A line that begins with the text of a role, such as
        "User:", starts a new turn. Lines before the first such line are a user turn.
        """
        found, role, lines = [], "user", []
        for line in text.strip().splitlines():
            new_role = next((name for name, before in self.roles.items() if line.startswith(before)), None)
            if new_role is not None:
                found.append((role, "\n".join(lines).strip()))
                role, lines = new_role, [line.removeprefix(self.roles[new_role])]
            else:
                lines.append(line)
        return [turn for turn in [*found, (role, "\n".join(lines).strip())] if turn[1]]


class EncodedTurn(NamedTuple):
    """An encoded turn of a dialogue, and whether it is a training target."""

    role_tokens: np.ndarray
    """Tokens of the text of the role, such as "User:", which precedes the content, int32 [tokens]."""
    tokens: np.ndarray
    """Tokens of the content of the turn, followed by the EOS token, int32 [tokens]."""
    is_target: bool
    """Whether the tokens are training targets, which is the case for turns of the assistant."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """The encoded turns of a dialogue."""

    parts: tuple[EncodedTurn, ...]
    size: int
    """Number of characters in all turns, which counts as their size in the cache of encoded documents."""


@dataclasses.dataclass(frozen=True)
class Dialogue(Task[Turns]):
    """Next-token prediction on the assistant turns of a dialogue. Each token is predicted from everything before it.

    Each example has a list of turns {"role": ..., "content": ...} with the role system, user or assistant. A dialogue
    that does not fit in a row is split after an answer and continues in the next row. If a question and the answers to
    it are together longer than a row, they are truncated.

    Batch rows: `tokens`, `targets` int32 and `weights` float32 [batch, length], and the `segments` (the number of each
    token's example in the row) and `position_ids` that the data pipeline adds. Weights are 1 if the target belongs to
    an assistant turn, including its EOS token, and otherwise 0.
    """

    length: int = 512
    """Number of tokens per batch row."""
    messages: str = "messages"
    """Name of the column with the list of turns."""
    template: DialogueTemplate = DialogueTemplate()
    """Text that is written before the turns of each role."""

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

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        turns = self.read(example)
        answers = [content for role, content in turns if role == ANSWERS]
        return Demonstration(self.requests(example, folder), answers[0] if answers else None)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Turns:
        turns = self.read(example)
        encoded = [EncodedTurn(*self.template.encode(turn, tokenizer), turn[0] == ANSWERS) for turn in turns]
        return Turns(tuple(encoded), sum(len(content) for _, content in turns))

    def examples(self, document: Turns, visit: Visit[Turns]) -> list[Example]:
        return [example for row in self._rows(document) if (example := self._example(row)) is not None]

    def _rows(self, document: Turns) -> list[list[EncodedTurn]]:
        """Distributes the turns of a dialogue over batch rows, in order, without separating a question from its
        answers. Returns one list of turns per row.
        """
        rows, size = [[]], 0
        for exchange in _exchanges(document.parts):
            more = len(_joined(exchange))
            if rows[-1] and size + more > self.length + 1:
                rows.append([])
                size = 0
            rows[-1] += exchange
            size += more
        return rows

    def _example(self, parts: Sequence[EncodedTurn]) -> Example | None:
        """Makes a training example from the turns of one batch row. Returns None if none of its tokens is a target."""
        ids = _joined(parts)[: self.length + 1]
        learned = [np.repeat([False, part.is_target], [len(part.role_tokens), len(part.tokens)]) for part in parts]
        weights = np.concatenate([[], *learned])[1 : len(ids)].astype(np.float32)
        if not weights.any():
            return None
        return layouts.text_example(ids) | {"weights": weights}


def _exchanges(parts: Sequence[EncodedTurn]) -> Iterator[list[EncodedTurn]]:
    """Groups the turns of a dialogue into exchanges: each contains the turns up to and including the next assistant
    turns, such as a question and its answer.
    """
    exchange = []
    for part in parts:
        if exchange and exchange[-1].is_target and not part.is_target:
            yield exchange
            exchange = []
        exchange.append(part)
    if exchange:
        yield exchange


def _joined(parts: Sequence[EncodedTurn]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *(array for part in parts for array in part[:2])]).astype(np.int32)
