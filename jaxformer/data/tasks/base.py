"""Step 3 of the data pipeline: tasks turn an encoded document into training examples.

A task is a frozen dataclass whose methods are pure. `read` checks the columns of an example from a source and returns
their values. `encode` (step 2) turns such an example into the document that the lanes cache. `examples` turns a
document and a `Visit` into training examples. `row` declares how a lane places training examples in a batch row.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np

from jaxformer.data.examples import DocumentT, Example, Feature, Visit
from jaxformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Written:
    """A pair of input and reference text, with the tokens that the model receives as its input."""

    inputs: str
    """Input text, with the prefix of the task."""
    reference: str
    """Text to generate, as in the source."""
    tokens: np.ndarray
    """Input tokens as they appear in a batch row, int32 [n]."""
    cut_inputs: bool
    """Whether the inputs were truncated to fit in a row."""
    cut_references: bool
    """Whether the reference would be truncated to fit in a row."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[DocumentT]):
    """Makes training examples from documents. Use one of the subclasses."""

    @property
    @abc.abstractmethod
    def row(self) -> dict[str, Feature]:
        """Layouts of the arrays of an example, by name.

        The lanes add segments and positions for `tokens` and `inputs`.
        """

    @property
    def reads_text(self) -> bool:
        """Whether the task needs a tokenizer."""
        return True

    @property
    def unit(self) -> tuple[str, int]:
        """Name of the unit for throughput, such as "tokens", and the number of units per row."""
        return "tokens", self.row["tokens"].capacity

    @property
    def min_documents(self) -> int:
        """Minimum number of documents in a source."""
        return 1

    @property
    def requirement(self) -> str:
        """Requirement on a document to give an example, for error messages."""
        return "document with text"

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        """Raises InputError if the tokenizer or packing does not fit the task."""

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        """Raises InputError if the task cannot learn from the training source, such as if all labels are equal.

        `name` is the name of the source, for messages.
        """

    def for_evaluation(self) -> "Task":
        """Returns this task without augmentation, for held-out data."""
        return self

    def prepare_requests(self, requests: Sequence[Any]) -> Sequence[Any]:
        """Converts the inputs of the `predict` command (texts or paths) to the inputs of the predictor."""
        return requests

    def read(self, example: Mapping[str, Any]) -> Any:
        """Returns the checked values of the columns that the task reads. `encode` calls it first.

        Raises:
          InputError: If a column is missing or contains a value of the wrong type.
        """
        return example

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """Returns arguments for the `predict` command made from an example of a source. May be empty.

        Args:
          example: columns by name.
          folder: folder in which to write a request that must be a file.

        Raises:
          InputError: If a column that the task reads is missing from the example.
        """
        return ()

    @property
    def writes(self) -> bool:
        """Whether documents have a text to generate, which `written` returns."""
        return False

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        """Returns the text to generate for an example of a source. None if the example does not have one."""
        return None

    @abc.abstractmethod
    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> DocumentT:
        """Returns the encoded document, the input of `examples`."""

    @abc.abstractmethod
    def examples(self, document: DocumentT, visit: Visit[DocumentT]) -> list[Example]:
        """Returns the examples for one visit to a document. May be empty."""
