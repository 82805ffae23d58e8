"""Dialogue task: formats dialogues as text, with a role name before each turn or by a chat template. A decoder learns
to generate the assistant turns.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tasks.turns import (
    ANSWERS,
    EncodedRow,
    Exchange,
    Turn,
    TurnTemplate,
    exchanges,
    read_turns,
)
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class DialogueTemplate(TurnTemplate):
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

    @property
    def known_roles(self) -> tuple[str, ...]:
        return tuple(self.roles)

    def content(self, text: str) -> str:
        return text.strip()

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

    def encode_rows(self, turns: Sequence[Turn], tokenizer: Tokenizer, longest: int) -> list[EncodedRow]:
        rows: list[EncodedRow] = []
        for exchange in exchanges(turns):
            more = self._encode_turns(exchange, tokenizer)
            if rows and len(rows[-1].ids) + len(more.ids) <= longest:
                last = rows.pop()
                more = EncodedRow(
                    np.concatenate([last.ids, more.ids]), np.concatenate([last.is_target, more.is_target])
                )
            rows.append(more)
        return rows

    def _encode_turns(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> EncodedRow:
        ids, targets = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
        for turn in turns:
            before, content = self.encode(turn, tokenizer)
            ids += [before, content]
            targets += [np.zeros(len(before), bool), np.full(len(content), turn[0] == ANSWERS)]
        return EncodedRow(np.concatenate(ids).astype(np.int32), np.concatenate(targets))

    def encode_prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> np.ndarray:
        before = self._encode_turns(turns, tokenizer).ids
        return np.concatenate([before, tokenizer.encode(self.assistant.rstrip())]).astype(np.int32)

    def encode_exchange(self, turns: Sequence[Turn], answer: str, tokenizer: Tokenizer) -> Exchange:
        before = self._encode_turns(turns, tokenizer).ids
        role, content = self.encode((ANSWERS, self.content(answer)), tokenizer)
        return Exchange(np.concatenate([before, role]).astype(np.int32), content)

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (tokenizer.eos_id,)

    def show_answer(self, text: str) -> str:
        return f"\n{self.text((ANSWERS, text))}"

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


@dataclasses.dataclass(frozen=True)
class EncodedDialogue:
    """The tokens of a dialogue, divided into batch rows."""

    rows: tuple[EncodedRow, ...]
    size: int
    """Number of characters in all turns, which counts as their size in the cache of encoded documents."""


@dataclasses.dataclass(frozen=True)
class Dialogue(Task[EncodedDialogue]):
    """Next-token prediction on the assistant turns of a dialogue. Each token is predicted from everything before it.

    Each example has a list of turns {"role": ..., "content": ...} with the role system, user or assistant. A dialogue
    that does not fit in a row is split after an answer and continues in the next row, with a `ChatTemplate` after the
    system prompt. If a question and the answers to it are together longer than a row, they are truncated.

    Batch rows: `tokens`, `targets` int32 and `weights` float32 [batch, length], and the `segments` (the number of each
    token's example in the row) and `position_ids` that the data pipeline adds. Weights are 1 if the target belongs to
    an assistant turn, including its EOS token, and otherwise 0.
    """

    length: int = 512
    """Number of tokens per batch row."""
    messages: str = "messages"
    """Name of the column with the list of turns."""
    template: TurnTemplate = DialogueTemplate()
    """Template that formats dialogues as text: a text before the turns of each role (`DialogueTemplate`), or a Jinja
    template of a chat model (`ChatTemplate`).
    """

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 8)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    @property
    def requirement(self) -> str:
        return f"dialogue with an answer in {self.messages!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        self.template.check(tokenizer)

    def read(self, example: Mapping[str, Any]) -> list[Turn]:
        return read_turns(example, self.messages, "data.task.messages", self.template)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        questions = [content for role, content in self.read(example) if role == "user"]
        return tuple(map(columns.first_words, questions[:1]))

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        turns = self.read(example)
        answers = [content for role, content in turns if role == ANSWERS]
        return Demonstration(self.requests(example, folder), answers[0] if answers else None)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> EncodedDialogue:
        turns = self.read(example)
        rows = self.template.encode_rows(turns, tokenizer, self.length + 1) if turns else []
        return EncodedDialogue(tuple(rows), sum(len(content) for _, content in turns))

    def examples(self, document: EncodedDialogue, visit: Visit[EncodedDialogue]) -> list[Example]:
        return [example for row in document.rows if (example := self._example(row)) is not None]

    def _example(self, row: EncodedRow) -> Example | None:
        """Makes a training example from a row of tokens. Returns None if none of the tokens is a target."""
        ids = row.ids[: self.length + 1]
        weights = row.is_target[1 : len(ids)].astype(np.float32)
        return layouts.text_example(ids) | {"weights": weights} if weights.any() else None
