"""Dialogues as text: turns after the names of their speakers, for a decoder that learns to give the answers."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.sources import files
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError

Turn = tuple[str, str]
"""A role and what it says."""
ANSWERS = "assistant"
"""The role whose turns are learned."""


@dataclasses.dataclass(frozen=True)
class DialogueTemplate:
    """What comes before a turn of each role; the tokenizer's end token comes after it."""

    system: str = "System:"
    """Before instructions."""
    user: str = "User:"
    """Before what is asked."""
    assistant: str = "Assistant:"
    """Before an answer."""

    def __post_init__(self):
        names = dataclasses.astuple(self)
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise InputError(f"template {names}: give each role a name of its own, which is not empty")

    @property
    def roles(self) -> dict[str, str]:
        """What stands before the turns of each role."""
        return dataclasses.asdict(self)

    def space(self, role: str) -> str:
        """What separates a turn from what comes before it: the white space there, or else a space."""
        before = self.roles[role]
        return before[len(before.rstrip()) :] or " "

    def text(self, turn: Turn) -> str:
        """A turn with what comes before it."""
        role, content = turn
        return self.roles[role].rstrip() + (self.space(role) + content if content else "")

    def encode(self, turn: Turn, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """The tokens before a turn, and those of the turn with its end token: int32 [m], [n].

        Both are encoded as one text.
        """
        tokens, offsets = tokenizer.encode_with_offsets(self.text(turn))
        size = int(np.sum(offsets[:, 0] < len(self.roles[turn[0]].rstrip())))
        return tokens[:size], layouts.ended(tokens[size:], tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """A dialogue and the beginning of its next answer, int32 [n], from a text.

        A line that begins with the name of a role begins a turn; a user says what comes before the first one.
        """
        parts = [part for turn in self.turns(text) for part in self.encode(turn, tokenizer)]
        return np.concatenate([*parts, tokenizer.encode(self.assistant.rstrip())]).astype(np.int32)

    def turns(self, text: str) -> list[Turn]:
        """The turns of a text, those with nothing in them left out."""
        found, role, lines = [], "user", []
        for line in text.strip().splitlines():
            begun = next((name for name, before in self.roles.items() if line.startswith(before)), None)
            if begun is not None:
                found.append((role, "\n".join(lines).strip()))
                role, lines = begun, [line.removeprefix(self.roles[begun])]
            else:
                lines.append(line)
        return [turn for turn in [*found, (role, "\n".join(lines).strip())] if turn[1]]


class Part(NamedTuple):
    """An encoded turn."""

    before: np.ndarray
    """int32 [m]: what stands before it."""
    tokens: np.ndarray
    """int32 [n]: what is said, and the end token."""
    learned: bool
    """Whether it is an answer."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """The encoded turns of a dialogue."""

    parts: tuple[Part, ...]
    """In their order."""
    size: int
    """Characters of all."""


@dataclasses.dataclass(frozen=True)
class Dialogue(Task):
    """The answers of a dialogue, each token given all that was said before; nothing else is a target.

    A source has a list of turns, each {"role": ..., "content": ...} with the role system, user or assistant. A dialogue
    that does not fit into a row is cut after answers; a question with its answers that has no room loses its end.

    Rows: `tokens`, `targets` int32 and `weights` float32 [b, length], with the lanes' `segments` and `position_ids`;
    weights are 1 where a target is of an answer, its end token too.
    """

    length: int = 512
    """Tokens a row."""
    messages: str = "messages"
    """Column of the source with the list of turns."""
    template: DialogueTemplate = DialogueTemplate()
    """How turns are written."""

    def __post_init__(self):
        layouts.at_least("length", self.length, 8)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    @property
    def need(self) -> str:
        return f"dialogue with an answer in {self.messages!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.eos_id  # raises if there is none

    def read(self, example: Mapping[str, Any]) -> list[Turn]:
        turns = []
        for number, message in enumerate(files.items(example, self.messages, "task.messages")):
            role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
            if not isinstance(role, str) or role not in self.template.roles or not isinstance(content, str):
                raise InputError(
                    f"turn {str(message)[:80]!r}: expected a role, one of {', '.join(self.template.roles)}, and its "
                    "content, a text"
                )
            files.check_text(content, f"turn {number}")
            turns.append((role, content.strip()))
        return turns

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        asked = [content for role, content in self.read(example) if role == "user"]
        return tuple(map(files.first_words, asked[:1]))

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Turns:
        turns = self.read(example)
        encoded = [Part(*self.template.encode(turn, tokenizer), turn[0] == ANSWERS) for turn in turns]
        return Turns(tuple(encoded), sum(len(content) for _, content in turns))

    def examples(
        self,
        document: Turns,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Turns],
    ) -> list[Example]:
        return [example for row in self._rows(document) if (example := self._example(row)) is not None]

    def _rows(self, document: Turns) -> list[list[Part]]:
        """The turns of each row, in their order."""
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
        """The example of some turns; None where no target is left of an answer."""
        ids = _joined(parts)[: self.length + 1]
        learned = [np.repeat([False, part.learned], [len(part.before), len(part.tokens)]) for part in parts]
        weights = np.concatenate([[], *learned])[1 : len(ids)].astype(np.float32)
        if not weights.any():
            return None
        return layouts.text_example(ids) | {"weights": weights}


def _exchanges(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Questions with the answers after them."""
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
