"""Tasks that generate one text from another: `TextToText`, such as translation, and prefix language modeling
(`PrefixLM`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task, Written
from jaxformer.data.tasks.layouts import Document, TextPair
from jaxformer.data.tasks.text import TextTask
from jaxformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class PrefixLM(TextTask):
    """Task of prefix language modeling (Raffel et al. 2020, §3.2.1; Liu et al. 2018).

    Cuts each document into chunks, and splits each chunk at a random point. The model predicts the tokens after that
    point from the tokens before it (the prefix).

    For an encoder-decoder, a batch has the same arrays as that of `TextToText`. For a decoder-only model
    (`input_length` is None), chunks overlap by one token as in `NextToken`, and a batch also has `prefix` int32 [batch,
    length]: 1 at prefix tokens, which attend to each other in both directions, and 0 elsewhere. `weights` are 0 at
    prefix tokens except the last one, which predicts the first token after the prefix.
    """

    length: int = 512
    """Number of target tokens per batch row. For a decoder-only model, the number of prefix and target tokens together.
    """
    input_length: int | None = None
    """Number of encoder input tokens per batch row, for an encoder-decoder. None for a decoder-only model."""
    column: str | None = None
    """Name of the dataset column that contains a text or a list of sentences. If None, `sentences` if that column
    exists, otherwise `text`.
    """

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 2)
        fields.at_least("data.task.input_length", self.input_length, 2)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.length)

    @property
    def requirement(self) -> str:
        return "document of two tokens or more"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos", "pad")

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.first_words(self.read(example), 5),)

    def examples(self, document: Document, visit: Visit[Document]) -> list[Example]:
        ids = document.tokens
        if len(ids) < 2:
            return []
        if self.input_length is None:
            stretches = layouts.overlapping(layouts.ended(ids, visit.tokenizer), self.length)
            return [layouts.text_example(stretch, int(visit.rng.integers(1, len(stretch)))) for stretch in stretches]
        # Wherever such a chunk is split, both parts fit with their EOS tokens.
        room = min(self.input_length, self.length)
        stretches = [ids[start : start + room] for start in range(0, len(ids) - 1, room)]
        return [self._split(stretch, visit) for stretch in stretches]

    def _split(self, stretch: np.ndarray, visit: Visit[Document]) -> Example:
        prefix, rest = np.split(stretch, [visit.rng.integers(1, len(stretch))])
        inputs, targets = layouts.ended(prefix, visit.tokenizer), layouts.ended(rest, visit.tokenizer)
        return layouts.pair_example(inputs, targets, visit.tokenizer, encoder=True)


@dataclasses.dataclass(frozen=True)
class TextToText(Task[TextPair]):
    """Task to generate one text from another: translation, summarization, answers (Sutskever et al. 2014, Raffel et al.
    2020).

    A batch is a dict of arrays: `inputs`, `input_segments` and `input_position_ids` int32 [batch, input_length] for the
    encoder; `tokens`, `targets`, `segments` and `position_ids` int32 and `weights` float32 [batch, length] for the
    decoder. Inputs and targets end with the EOS token. `tokens` are a padding token followed by the targets without
    their last token. Segments are the number of the example in its row, counted from 1, and 0 for padding.

    For a decoder-only model (`input_length` is None), `tokens` are the inputs followed by the targets. In place of the
    encoder arrays, a batch has `prefix` int32 [batch, length], 1 at input tokens and 0 elsewhere. `weights` are 0 at
    input tokens except the last one, which predicts the first target token.
    """

    input_length: int | None = 512
    """Number of encoder input tokens per batch row, for an encoder-decoder. If None, for a decoder-only model, inputs
    and targets share rows of `length` tokens.
    """
    length: int = 512
    """Number of target tokens per batch row. If `input_length` is None, the number of input and target tokens together.
    """
    inputs: str = "inputs"
    """Name of the dataset column with the input text."""
    targets: str = "targets"
    """Name of the dataset column with the target text."""
    prefix: str = ""
    """Text to add before the inputs, such as "summarize: "."""
    too_long: Literal["cut", "drop"] = "cut"
    """Handling of an example that does not fit in a batch row: `cut` truncates it, `drop` leaves it out."""

    def __post_init__(self):
        fields.at_least("data.task.input_length", self.input_length, 2)
        fields.at_least("data.task.length", self.length, 2 if self.input_length else 3)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.length)

    @property
    def requirement(self) -> str:
        fits = ", and room for both" if self.too_long == "drop" else ""
        return f"example with text in {self.inputs!r} and {self.targets!r}{fits}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos", "pad")

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (self.prefix + columns.first_words(columns.text(example, self.inputs, "data.task.inputs")),)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        inputs, targets = self.read(example)
        return Demonstration((self.prefix + inputs,), targets)

    def read(self, example: Mapping[str, Any]) -> tuple[str, str]:
        inputs = columns.text(example, self.inputs, "data.task.inputs")
        return inputs, columns.text(example, self.targets, "data.task.targets")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> TextPair:
        inputs, targets = self.read(example)
        if not inputs:
            return TextPair(np.zeros(0, np.int32), tokenizer.target.encode(targets), len(targets))
        size = len(inputs) + len(targets)
        return TextPair(tokenizer.encode(self.prefix + inputs), tokenizer.target.encode(targets), size)

    def examples(self, document: TextPair, visit: Visit[TextPair]) -> list[Example]:
        if not len(document.inputs) or not len(document.targets):
            return []
        inputs, targets, *cut = self._cut(document, visit.tokenizer)
        if self.too_long == "drop" and any(cut):
            return []
        return [layouts.pair_example(inputs, targets, visit.tokenizer, encoder=self.input_length is not None)]

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        pair = self.encode(example, tokenizer)
        if not len(pair.inputs) or not len(pair.targets):
            return None
        inputs, _, cut_inputs, cut_targets = self._cut(pair, tokenizer)
        text, reference = self.read(example)
        return Written(self.prefix + text, reference, inputs, cut_inputs, cut_targets)

    def _cut(self, pair: TextPair, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        """Adds EOS tokens to inputs and targets, and truncates both to fit in a batch row.

        Returns (inputs, targets, whether the inputs were truncated, whether the targets were truncated).
        """
        if self.input_length is not None:
            inputs, whole = layouts.encoder_inputs(pair.inputs, tokenizer, self.input_length)
            targets = layouts.ended(pair.targets, tokenizer, self.length)
            return inputs, targets, not whole, len(targets) <= len(pair.targets)
        # The last token is only a target. The inputs are truncated first, down to one token and the EOS token.
        targets = layouts.ended(pair.targets, tokenizer, self.length - 1)
        inputs = layouts.ended(pair.inputs, tokenizer, self.length + 1 - len(targets))
        return inputs, targets, len(inputs) <= len(pair.inputs), len(targets) <= len(pair.targets)
