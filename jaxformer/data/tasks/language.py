"""Tasks in which text is written token by token: language models, text to text, prefix language models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer.data.sources import files
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task, Written
from jaxformer.data.tasks.layouts import Document
from jaxformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class NextToken(Task):
    """Every next token of a document (Radford et al. 2019), of which the last is the end-of-text token.

    A long document is cut into stretches; the last target of one is the first token of the next, so that every token
    but the first is a target once.

    Rows: `tokens`, `targets` int32 and `weights` float32 [b, length], with the lanes' `segments` and `position_ids`.
    """

    length: int = 1024
    """Tokens a row."""
    column: str | None = None
    """Column of the source with the text or the list of sentences; None: `sentences` or `text`."""
    beginning: bool = False
    """Begin each document with the tokenizer's beginning token, so that the first token is predicted too."""

    def __post_init__(self):
        layouts.at_least("length", self.length, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.eos_id, self.beginning and tokenizer.bos_id  # each raises if there is none

    def read(self, example: Mapping[str, Any]) -> str:
        return files.text(example, self.column)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (files.first_words(files.text(example, self.column), 5),)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Document:
        return layouts.document(self.read(example), tokenizer)

    def examples(
        self,
        document: Document,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Document],
    ) -> list[Example]:
        if not len(document.tokens):
            return []
        ids = layouts.ended(document.tokens, tokenizer)
        if self.beginning:
            ids = np.insert(ids, 0, tokenizer.bos_id)
        return [layouts.text_example(stretch) for stretch in overlapping(ids, self.length)]


@dataclasses.dataclass(frozen=True)
class PrefixLM(Task):
    """The rest of a stretch of text after its beginning, split at random (Raffel et al. 2020, §3.2.1; Liu et al. 2018).

    For an encoder-decoder, rows as those of `TextToText`. For a decoder alone (`input_length` None) the stretches of
    `NextToken`, and in each of them a prefix whose tokens may see each other both ways: `prefix` int32 [b, length] is 1
    there, and `weights` are 0 but at its last token.
    """

    length: int = 512
    """Tokens of the targets a row; without an encoder, of prefix and rest."""
    input_length: int | None = None
    """Tokens of the inputs a row, for an encoder-decoder; None is for a decoder alone."""
    column: str | None = None
    """Column of the source with the text or the list of sentences; None: `sentences` or `text`."""

    def __post_init__(self):
        layouts.at_least("length", self.length, 2)
        layouts.at_least("input_length", self.input_length, 2)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.length)

    @property
    def need(self) -> str:
        return "document of two tokens or more"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.eos_id, tokenizer.pad_id  # each raises if there is none

    def read(self, example: Mapping[str, Any]) -> str:
        return files.text(example, self.column)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (files.first_words(files.text(example, self.column), 5),)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Document:
        return layouts.document(self.read(example), tokenizer)

    def examples(
        self,
        document: Document,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Document],
    ) -> list[Example]:
        ids = document.tokens
        if len(ids) < 2:
            return []
        if self.input_length is None:
            stretches = overlapping(layouts.ended(ids, tokenizer), self.length)
            return [layouts.text_example(stretch, int(rng.integers(1, len(stretch)))) for stretch in stretches]
        # Wherever such a stretch is split, both parts and their end tokens have room.
        room = min(self.input_length, self.length)
        stretches = [ids[start : start + room] for start in range(0, len(ids) - 1, room)]
        return [self._split(stretch, tokenizer, rng) for stretch in stretches]

    def _split(self, stretch: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> Example:
        parts = np.split(stretch, [rng.integers(1, len(stretch))])
        return layouts.pair_example(*(layouts.ended(part, tokenizer) for part in parts), tokenizer, encoder=True)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two encoded texts, int32 [n] each, without special tokens."""

    inputs: np.ndarray
    targets: np.ndarray
    size: int
    """Characters of both."""


@dataclasses.dataclass(frozen=True)
class TextToText(Task):
    """One text after reading another: translation, summaries, answers (Sutskever et al. 2014, Raffel et al. 2020).

    Rows: `inputs` int32 [b, input_length] with the lanes' `input_segments` and `input_position_ids`; `tokens`,
    `targets` int32 and `weights` float32 [b, length] with `segments` and `position_ids`. Inputs and targets end with
    the end token;
    tokens are padding, then the targets without their last. For a decoder alone (`input_length` None), `tokens` are
    inputs and targets one after the other, `prefix` int32 [b, length] is 1 in the inputs and `weights` are 0 but at
    their last token.
    """

    input_length: int | None = 512
    """Tokens of the inputs a row, for an encoder-decoder; None: inputs and targets share rows of `length`."""
    length: int = 512
    """Tokens of the targets a row."""
    inputs: str = "inputs"
    """Column of the source with the text to read."""
    targets: str = "targets"
    """Column of the source with the text to write."""
    prefix: str = ""
    """What to put before the inputs, such as "summarize: "."""
    too_long: Literal["cut", "drop"] = "cut"
    """Cut off what has no room, or leave such an example out."""

    def __post_init__(self):
        layouts.at_least("input_length", self.input_length, 2)
        layouts.at_least("length", self.length, 2 if self.input_length else 3)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.length)

    @property
    def need(self) -> str:
        fits = ", and room for both" if self.too_long == "drop" else ""
        return f"example with text in {self.inputs!r} and {self.targets!r}{fits}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.eos_id, tokenizer.pad_id  # each raises if there is none

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (self.prefix + files.first_words(files.text(example, self.inputs, "task.inputs")),)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str]:
        inputs = files.text(example, self.inputs, "task.inputs")
        return inputs, files.text(example, self.targets, "task.targets")

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Pair:
        inputs, targets = self.read(example)
        if not inputs:
            return Pair(np.zeros(0, np.int32), tokenizer.target.encode(targets), len(targets))
        encoded = tokenizer.encode(self.prefix + inputs), tokenizer.target.encode(targets)
        return Pair(*encoded, len(inputs) + len(targets))

    def examples(
        self,
        document: Pair,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Pair],
    ) -> list[Example]:
        if not len(document.inputs) or not len(document.targets):
            return []
        inputs, targets, *cut = self._cut(document, tokenizer)
        if self.too_long == "drop" and any(cut):
            return []
        return [layouts.pair_example(inputs, targets, tokenizer, encoder=self.input_length is not None)]

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        pair = self.encode(example, tokenizer)
        if not len(pair.inputs) or not len(pair.targets):
            return None
        inputs, _, *cut = self._cut(pair, tokenizer)
        text, reference = self.read(example)
        return Written(self.prefix + text, reference, inputs, *cut)

    def _cut(self, pair: Pair, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        """Inputs and targets, each with its end token, as long as there is room, and whether either was cut."""
        if self.input_length is not None:
            inputs, whole = layouts.encoder_inputs(pair.inputs, tokenizer, self.input_length)
            targets = layouts.ended(pair.targets, tokenizer, self.length)
            return inputs, targets, not whole, len(targets) <= len(pair.targets)
        # The last token is only a target. The inputs are cut first, to no less than a token and their end.
        targets = layouts.ended(pair.targets, tokenizer, self.length - 1)
        inputs = layouts.ended(pair.inputs, tokenizer, self.length + 1 - len(targets))
        return inputs, targets, len(inputs) <= len(pair.inputs), len(targets) <= len(pair.targets)


def overlapping(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Stretches of up to `length` + 1 ids, each of which begins with the last id of the one before."""
    return [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
