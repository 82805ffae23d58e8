"""Tasks, which make training examples from the documents of a data source.

A task is a frozen dataclass whose methods are pure. `read` checks the columns of an example from a source and returns
their values. `encode` converts such an example to a document, for example by tokenizing its text, and the data pipeline
caches it. `examples` makes training examples from a document each time that the document is read (see `Visit`). `row`
declares how training examples are laid out in a batch row.
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
    """Input text and reference text of an example. Evaluation compares the text that the model generates from the input
    with the reference.
    """

    inputs: str
    """Input text, including the prefix that the task adds."""
    reference: str
    """Text that the model should generate, as in the source."""
    tokens: np.ndarray
    """Input tokens, as they appear in a batch row, int32 [tokens]."""
    cut_inputs: bool
    """Whether the input was truncated to fit in a batch row."""
    cut_references: bool
    """Whether the reference would be truncated to fit in a batch row."""


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """Request that shows what a model of a task does, and the answer in the data."""

    requests: tuple[str, ...]
    """Arguments of the `predict` command, in full length: texts or file paths. Empty if the task has no requests."""
    reference: str | None = None
    """Answer in the data, for comparison, such as a label or a translation. None if there is none."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[DocumentT]):
    """Base class of pretraining and fine-tuning tasks, which make training examples from documents. Abstract: use a
    subclass, such as `NextToken`.
    """

    @property
    @abc.abstractmethod
    def row(self) -> dict[str, Feature]:
        """Maps the names of the arrays of a training example to their layouts in a batch row.

        For `tokens` and `inputs`, the data pipeline adds two more arrays: the number of each token's example in the row
        (segments), and the position of each token in its example (position ids).
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
        """Phrase for error messages that names what a document must contain to give a training example, such as
        "document with text".
        """
        return "document with text"

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        """Checks that the task can be used with the tokenizer, and with packing if `pack` is True. Raises InputError if
        it cannot.
        """

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        """Raises InputError if the task cannot learn from the training source, for example because all its labels are
        the same.

        `name` is the name of the source, for error messages.
        """

    def for_evaluation(self) -> "Task":
        """Returns this task without augmentation, for held-out data."""
        return self

    def prepare_requests(self, requests: Sequence[Any]) -> Sequence[Any]:
        """Converts the arguments of the `predict` command (texts or file paths) to the inputs of the model's predictor,
        for example by decoding images.
        """
        return requests

    def read(self, example: Mapping[str, Any]) -> Any:
        """Checks the columns of an example that the task reads, and returns their values. `encode` calls this method.

        Raises:
          InputError: If a column is missing or contains a value of the wrong type.
        """
        return example

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """Returns arguments with which users can try the `predict` command: texts or file paths taken from an example
        of a source. Returns an empty tuple if the task does not support it.

        Args:
          example: maps column names to values.
          folder: folder in which to save a value that is in memory if `predict` takes a file, such as an image.

        Raises:
          InputError: If a column that the task reads is missing from the example.
        """
        return ()

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        """Returns a request made of an example of a source, and the answer that the example contains. Same arguments
        and errors as `requests`, which it returns by default.
        """
        return Demonstration(self.requests(example, folder))

    @property
    def writes(self) -> bool:
        """Whether models of this task generate a text that can be compared with a reference text, as returned by
        `written`.
        """
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
        """Makes the training examples of a document for one reading of it. The list may be empty. `visit` provides the
        tokenizer, the random generator of this reading, and other documents.
        """
