"""Base class of tasks on a single text."""

from collections.abc import Mapping
from typing import Any

from jaxformer.data.sources import columns
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.layouts import Document
from jaxformer.data.tokenizers import Tokenizer


class TextTask(Task[Document]):
    """Task whose documents are the tokens of one text column."""

    column: str | None

    def read(self, example: Mapping[str, Any]) -> str:
        return columns.text(example, self.column)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Document:
        text = self.read(example)
        return Document(tokenizer.encode(text), len(text))
