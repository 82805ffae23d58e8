"""Step 3 of the data pipeline: tasks turn an encoded document into training examples.

A task is a frozen dataclass whose methods are pure. `read` checks the columns of an example from a source and returns
their values. `encode` (step 2) turns such an example into the document that the data pipeline caches. `examples` turns
a document and a `Visit` (one reading of the document) into training examples. `row` declares how training examples are
laid out in a batch row.
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
    """Input and reference text of an example, for evaluating generated text."""

    inputs: str
    """Input text, with the prefix of the task."""
    reference: str
    """Text that the model should generate, as in the source."""
    tokens: np.ndarray
    """Input tokens, as they appear in a batch row, int32 [tokens]."""
    cut_inputs: bool
    """Whether the input was truncated to fit in a batch row."""
    cut_references: bool
    """Whether the reference would be truncated to fit in a batch row."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[DocumentT]):
    """Pretraining or fine-tuning task: makes training examples from documents. Abstract: use a subclass, such as
    `NextToken`.
    """

    @property
    @abc.abstractmethod
    def row(self) -> dict[str, Feature]:
        """Maps the names of the arrays of a training example to their layouts in a batch row.

        The data pipeline adds arrays of segments and position ids for `tokens` and `inputs`.
        """

    @property
    def reads_text(self) -> bool:
        """Whether the task needs a tokenizer."""
        return True

    @property
    def unit(self) -> tuple[str, int]:
        """Name of the unit in which throughput is reported, such as "tokens", and the number of units per batch row."""
        return "tokens", self.row["tokens"].capacity

    @property
    def min_documents(self) -> int:
        """Minimum number of documents that a source for this task must have."""
        return 1

    @property
    def requirement(self) -> str:
        """Requirement that a document must meet to give a training example, for error messages."""
        return "document with text"

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        """Checks that the tokenizer and the packing setting fit the task. Raises InputError if they do not."""

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        """Raises InputError if the task cannot learn from the training source, for example because all its labels are
        the same.

        `name` is the name of the source, for error messages.
        """

    def for_evaluation(self) -> "Task":
        """Returns this task without augmentation, for held-out data."""
        return self

    def prepare_requests(self, requests: Sequence[Any]) -> Sequence[Any]:
        """Converts the arguments of the `predict` command (texts or paths) to the inputs of the predictor."""
        return requests

    def read(self, example: Mapping[str, Any]) -> Any:
        """Checks the columns of an example that the task reads, and returns their values. `encode` calls this method.

        Raises:
          InputError: If a column is missing or contains a value of the wrong type.
        """
        return example

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """Makes arguments for the `predict` command from an example of a source. Returns an empty tuple if the task
        does not support it.

        Args:
          example: maps column names to values.
          folder: folder to write an argument to if it must be a file, such as an image.

        Raises:
          InputError: If a column that the task reads is missing from the example.
        """
        return ()

    @property
    def writes(self) -> bool:
        """Whether models of this task generate a text that can be compared with a reference. See `written`."""
        return False

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        """Returns the input and reference text of an example of a source. None if the example does not have a
        reference.
        """
        return None

    @abc.abstractmethod
    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> DocumentT:
        """Converts a record of a data source to a document, for example by tokenizing its text.

        Documents are cached. `examples` makes training examples from them.

        Args:
          example: record of the source: maps column names to values.
          tokenizer: tokenizer of the experiment. None if the task reads no text.
        """

    @abc.abstractmethod
    def examples(self, document: DocumentT, visit: Visit[DocumentT]) -> list[Example]:
        """Makes the training examples for one reading of a document (see `Visit`). The list may be empty."""
