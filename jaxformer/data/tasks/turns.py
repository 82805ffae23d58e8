"""Turns of dialogues, and the base class of templates, which format dialogues as text."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.sources import columns
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError

Turn = tuple[str, str]
"""Role and content of a turn, such as ("user", "Hello")."""
ANSWERS = "assistant"
"""Role whose turns are the training targets, so that the model learns to generate them."""


class EncodedRow(NamedTuple):
    """The tokens of a dialogue, or of the part of a dialogue that fits in a batch row."""

    ids: np.ndarray
    """Token ids, int32 [tokens]."""
    is_target: np.ndarray
    """Whether each token is a training target, which is the case for tokens of answers, bool [tokens]."""


class Exchange(NamedTuple):
    """The tokens of a dialogue up to an answer, and of the answer."""

    prompt: np.ndarray
    """Token ids of everything before the answer, int32 [tokens]."""
    answer: np.ndarray
    """Token ids of the answer and its end, int32 [tokens]."""


@dataclasses.dataclass(frozen=True)
class TurnTemplate(abc.ABC):
    """Base class of templates, which format dialogues as text. Abstract: use `DialogueTemplate` or `ChatTemplate`."""

    @property
    def known_roles(self) -> tuple[str, ...]:
        """Names of the roles that a turn may have. Empty if the template itself checks the roles."""
        return ()

    @property
    def writes_beginning(self) -> bool:
        """Whether the template itself writes a BOS token if dialogues begin with one."""
        return False

    def content(self, text: str) -> str:
        """Returns the content of a turn as it is formatted, for example without surrounding white space."""
        return text

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises InputError if the tokenizer has no EOS token, which ends an answer."""
        tokenizer.require("eos")

    @abc.abstractmethod
    def turns(self, text: str) -> list[Turn]:
        """Converts a request of `predict` to the turns of a dialogue."""

    @abc.abstractmethod
    def encode_rows(self, turns: Sequence[Turn], tokenizer: Tokenizer, longest: int) -> list[EncodedRow]:
        """Encodes a dialogue for training. A dialogue of more than `longest` tokens is split after an answer. If a
        question and its answer are together longer, their row is longer too.
        """

    @abc.abstractmethod
    def encode_prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> np.ndarray:
        """Encodes a dialogue that ends where the next answer begins. Returns token ids, int32 [tokens]."""

    @abc.abstractmethod
    def encode_exchange(self, turns: Sequence[Turn], answer: str, tokenizer: Tokenizer) -> Exchange:
        """Encodes a dialogue and the answer to it."""

    @abc.abstractmethod
    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the ids of the tokens that end an answer, such as EOS."""

    @abc.abstractmethod
    def show_answer(self, text: str) -> str:
        """Formats a generated answer so that it can be appended to the text of the request."""

    def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """Encodes a request of `predict` as a dialogue that ends where the answer begins. Returns int32 [tokens]."""
        return self.encode_prompt(self.turns(text), tokenizer)


def read_turns(example: Mapping[str, Any], column: str, path: str, template: TurnTemplate) -> list[Turn]:
    """Returns the turns in a column of an example.

    The column contains a list of dicts {"role": ..., "content": ...}, such as {"role": "user", "content": "Hello"}, or
    as in TFDS data sets a dict of two lists.

    Args:
      example: maps column names to values.
      column: name of the column.
      path: path of the config field that names the column, for error messages.
      template: template that will format the turns.

    Raises:
      InputError: If the column does not exist or does not contain a list, or if a message has no role, a role that the
        template does not know, or a content that is not a text.
    """
    found, turns = columns.value(example, column, path), []
    if isinstance(found, Mapping) and {"role", "content"} <= found.keys():
        roles, contents = (columns.items(found, name, path) for name in ("role", "content"))
        if len(roles) != len(contents):
            raise InputError(f"column {column!r}: {len(roles)} roles and {len(contents)} contents; expected as many")
        found = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    else:
        found = columns.items(example, column, path)
    for number, message in enumerate(found):
        role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
        known = template.known_roles
        if not isinstance(role, str) or (known and role not in known) or not isinstance(content, str):
            expected = f"a role, one of {', '.join(known)}," if known else "a role, such as user or assistant,"
            raise InputError(f"turn {str(message)[:80]!r}: expected {expected} and a text as content")
        columns.check_text(content, f"turn {number}")
        turns.append((role, template.content(content)))
    return turns


def exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Groups the turns of a dialogue into exchanges. Each contains the turns up to and including the next answers, such
    as a question and its answer. Turns after the last answer form the last group.
    """
    groups: list[list[Turn]] = []
    for turn in turns:
        if not groups or (groups[-1][-1][0] == ANSWERS and turn[0] != ANSWERS):
            groups.append([])
        groups[-1].append(turn)
    return groups
