"""Step 3 of the data pipeline: an encoded document becomes training examples.

A task is a frozen dataclass whose methods are pure: `read` checks the columns of a source's example and returns their
values, `encode` (step 2) turns an example into the document that the lanes cache, `examples` turns a document and a
`Visit` into examples, and `row` says how a lane lays examples into rows.
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
    """A text to generate from another one, and what a model reads of it."""

    inputs: str
    """The text to read, with the task's prefix."""
    reference: str
    """The text to write, as the source has it."""
    tokens: np.ndarray
    """int32 [n]: the inputs as a row has them."""
    cut_inputs: bool
    """Whether the inputs have more tokens than a row."""
    cut_references: bool
    """Whether the reference has more tokens than a row."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[DocumentT]):
    """Makes the training examples of a document. Use one of its subclasses."""

    @property
    @abc.abstractmethod
    def row(self) -> dict[str, Feature]:
        """The arrays of an example by name. The lanes add segments and positions for `tokens` and `inputs`."""

    @property
    def reads_text(self) -> bool:
        """Whether the task needs a tokenizer."""
        return True

    @property
    def unit(self) -> tuple[str, int]:
        """The unit that speed is reported in, such as tokens, and how many of them fit in a row."""
        return "tokens", self.row["tokens"].capacity

    @property
    def min_documents(self) -> int:
        """Documents that a source must have."""
        return 1

    @property
    def requirement(self) -> str:
        """Requirement on a document that gives an example, for error messages."""
        return "document with text"

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        """Raises InputError if the tokenizer or packing does not fit the task."""

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        """Raises InputError if the training source `name` as a whole teaches nothing, such as labels of one class."""

    def for_evaluation(self) -> "Task":
        """The task for held-out data: without augmentation."""
        return self

    def prepare_requests(self, requests: Sequence[Any]) -> Sequence[Any]:
        """Converts what `predict` is given (texts or paths) into what the objective's `predict` takes."""
        return requests

    def read(self, example: Mapping[str, Any]) -> Any:
        """The values of the columns that the task reads, checked; `encode` begins with it.

        Raises:
          InputError: a column is missing or holds a value of a wrong type.
        """
        return example

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """Requests to `predict` about an example of a source, as words of a command line; may be empty.

        Args:
          example: columns by name.
          folder: where to write a request that must be a file.

        Raises:
          InputError: the example lacks what the task reads.
        """
        return ()

    @property
    def writes(self) -> bool:
        """Whether documents have a text to generate, which `written` returns."""
        return False

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        """The text to generate for an example of a source; None if it has none."""
        return None

    @abc.abstractmethod
    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> DocumentT:
        """The document that `examples` takes."""

    @abc.abstractmethod
    def examples(self, document: DocumentT, visit: Visit[DocumentT]) -> list[Example]:
        """The examples of one visit to a document, none or more."""
