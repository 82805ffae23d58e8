"""Causal language modeling task."""

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
from jaxformer.data.tasks.base import Demonstration
from jaxformer.data.tasks.layouts import Document
from jaxformer.data.tasks.text import TextTask
from jaxformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class NextToken(TextTask):
    """Next-token prediction on documents, each followed by the EOS token (Radford et al. 2019).

    A long document is cut into chunks that overlap by one token, so that every token except the first is a target once.

    Batch rows: `tokens`, `targets` int32 and `weights` float32 [batch, length], and the `segments` (the number of each
    token's example in the row) and `position_ids` that the data pipeline adds.
    """

    length: int = 1024
    """Number of tokens per batch row."""
    column: str | None = None
    """Name of the column with the text or the list of sentences. If None, the column `sentences` or `text` is used."""
    beginning: bool = False
    """Whether to begin each document with the BOS token, so that its first token is predicted too."""

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.text_row(self.length)

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos", *(["bos"] if self.beginning else []))

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.first_words(self.read(example), 5),)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        return Demonstration(self.requests(example, folder), columns.first_words(self.read(example), 40))

    def examples(self, document: Document, visit: Visit[Document]) -> list[Example]:
        if not len(document.tokens):
            return []
        ids = layouts.ended(document.tokens, visit.tokenizer)
        if self.beginning:
            ids = np.insert(ids, 0, visit.tokenizer.bos_id)
        return [layouts.text_example(stretch) for stretch in layouts.overlapping(ids, self.length)]
