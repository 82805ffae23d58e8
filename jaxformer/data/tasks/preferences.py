"""Preference task: pairs of a better and a worse answer to a prompt, for direct preference optimization (DPO)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tasks.turns import ANSWERS, Exchange, Turn, TurnTemplate, read_turns
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError, shown

PAIR = ("chosen", "rejected")


class Preference(NamedTuple):
    """A prompt with a better and a worse answer."""

    turns: list[Turn]
    """Turns of the dialogue before the answers. Without a template, one turn with the prompt."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""


@dataclasses.dataclass(frozen=True)
class EncodedPreference:
    """The tokens of a prompt with both answers."""

    chosen: Exchange
    """Tokens of the prompt and the better answer."""
    rejected: Exchange
    """Tokens of the prompt and the worse answer."""
    size: int
    """Number of characters in all texts, which counts as their size in the cache of encoded documents."""


@dataclasses.dataclass(frozen=True)
class Preferences(Task[EncodedPreference]):
    """Pairs of a better and a worse answer to the same prompt, for the objective `Dpo` (Rafailov et al. 2023).

    Each example has a prompt and two answers. The prompt is a text or a list of turns {"role": ..., "content": ...}. An
    answer is a text or a list with one turn of the assistant. If an example has no prompt, its answers are whole
    dialogues, whose common first turns are the prompt. A long prompt is truncated at its start, and a long answer at
    its end.

    Batch rows: `tokens`, `targets` int32 and `weights` float32 [batch, length] contain the prompt and the chosen
    answer, with `segments` and `position_ids`. `inputs`, `rejected_targets` int32 and `rejected_weights` float32
    [batch, length] contain the prompt and the rejected answer, with `input_segments` and `input_position_ids`. Weights
    are 1 if the target belongs to the answer or is the EOS token after it, and otherwise 0.
    """

    length: int = 512
    """Number of tokens per batch row for the prompt and one answer."""
    prompt: str = "prompt"
    """Name of the column with the prompt."""
    chosen: str = "chosen"
    """Name of the column with the better answer."""
    rejected: str = "rejected"
    """Name of the column with the worse answer."""
    template: TurnTemplate | None = None
    """Template that formats prompts and answers as dialogues. If None, each answer continues the text of the prompt,
    and the columns contain texts.
    """
    beginning: bool = False
    """Whether to begin each prompt with the BOS token. A `ChatTemplate` writes the token itself."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("data.task.length", self.length, 8)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        tokens, weights = Feature(self.length), Feature(self.length, "float32")
        rejected = {"inputs": tokens, "rejected_targets": tokens, "rejected_weights": weights}
        return layouts.text_row(self.length) | rejected

    @property
    def unit(self) -> tuple[str, int]:
        return "tokens", 2 * self.length

    @property
    def requirement(self) -> str:
        return f"example with answers in {self.chosen!r} and {self.rejected!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos", *(["bos"] if self.beginning else []))
        if pack:
            raise InputError("data.pack=True: a row of Preferences contains one pair; expected False")

    def read(self, example: Mapping[str, Any]) -> Preference:
        if self.prompt not in example and self.template is not None:
            return self._common_prompt(example)
        found = columns.value(example, self.prompt, "data.task.prompt")
        answers = (self._answer(example, column, name) for column, name in self._columns())
        if isinstance(found, str):
            columns.check_text(found, f"column {self.prompt!r}")
            turns = [("user", found)] if self.template is None else self.template.turns(found)
        else:
            turns = self._turns(example, self.prompt, "prompt")
        chosen, rejected = answers
        return Preference(turns, chosen, rejected)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        asked = [content for role, content in self.read(example).turns if role == "user"]
        return tuple(map(columns.first_words, asked[:1]))

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        return Demonstration(self.requests(example, folder), self.read(example).chosen)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> EncodedPreference:
        pair = self.read(example)
        chosen, rejected = (self._exchange(pair.turns, answer, tokenizer) for answer in (pair.chosen, pair.rejected))
        size = sum(len(content) for _, content in pair.turns) + len(pair.chosen) + len(pair.rejected)
        return EncodedPreference(chosen, rejected, size)

    def examples(self, document: EncodedPreference, visit: Visit[EncodedPreference]) -> list[Example]:
        sides = [document.chosen, document.rejected]
        if not all(len(side.prompt) and len(side.answer) for side in sides):
            return []
        # Both answers follow the same part of the prompt.
        longest = max(len(side.answer) for side in sides)
        room = max(self.length + 1 - longest, (self.length + 1) // 2)
        chosen, rejected = (self._laid_out(side, room) for side in sides)
        names = {"tokens": "inputs", "targets": "rejected_targets", "weights": "rejected_weights"}
        return [chosen | {names[name]: array for name, array in rejected.items()}]

    def _columns(self) -> tuple[tuple[str, str], ...]:
        return (self.chosen, "chosen"), (self.rejected, "rejected")

    def _answer(self, example: Mapping[str, Any], column: str, name: str) -> str:
        found = columns.value(example, column, f"data.task.{name}")
        if isinstance(found, str):
            columns.check_text(found, f"column {column!r}")
            return found
        turns = self._turns(example, column, name)
        if [role for role, _ in turns] != [ANSWERS]:
            holds = f"turns of {', '.join(role for role, _ in turns)}" if turns else "no turns"
            raise InputError(f"column {column!r} holds {holds}; expected one turn of the {ANSWERS}")
        return turns[0][1]

    def _common_prompt(self, example: Mapping[str, Any]) -> Preference:
        """Reads an example without a prompt, whose answers are whole dialogues with the same first turns."""
        chosen, rejected = (self._turns(example, column, name) for column, name in self._columns())
        if chosen[:-1] != rejected[:-1] or not chosen[1:] or {chosen[-1][0], rejected[-1][0]} != {ANSWERS}:
            raise InputError(
                f"columns {self.chosen!r} and {self.rejected!r}: without a column {self.prompt!r}, expected dialogues "
                f"that differ only in their last turn, of the {ANSWERS}"
            )
        return Preference(chosen[:-1], chosen[-1][1], rejected[-1][1])

    def _turns(self, example: Mapping[str, Any], column: str, name: str) -> list[Turn]:
        if self.template is None:
            found = shown(columns.value(example, column, f"data.task.{name}"))
            raise InputError(f"column {column!r} holds {found}; expected a text, or a template in data.task.template")
        return read_turns(example, column, f"data.task.{name}", self.template)

    def _exchange(self, turns: Sequence[Turn], answer: str, tokenizer: Tokenizer) -> Exchange:
        if self.template is not None:
            found = self.template.encode_exchange(turns, answer, tokenizer)
        else:
            prompt = turns[0][1]
            ids, offsets = tokenizer.encode_with_offsets(prompt + answer)
            first = int(np.sum(offsets[:, 0] < len(prompt.rstrip())))
            found = Exchange(ids[:first], layouts.ended(ids[first:], tokenizer))
        if not self.beginning or (self.template is not None and self.template.writes_beginning):
            return found
        return found._replace(prompt=np.append(tokenizer.bos_id, found.prompt).astype(np.int32))

    def _laid_out(self, side: Exchange, room: int) -> Example:
        prompt = side.prompt[-room:]
        ids = np.concatenate([prompt, side.answer])[: self.length + 1]
        example = layouts.text_example(ids)
        example["weights"][: len(prompt) - 1] = 0
        return example
