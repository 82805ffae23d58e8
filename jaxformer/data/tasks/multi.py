"""T5 multi-task pretraining: a mixture of span corruption and text-to-text tasks."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.examples import Example, Feature, Sized, Visit
from jaxformer.data.tasks.base import Demonstration, Task, Written
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import UL2, SpanCorruption
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, under


class Routed(NamedTuple):
    """An encoded document, and the name of the subtask of `MultiTask` (`denoising` or `text_to_text`) that makes
    training examples from it.
    """

    name: str
    document: Sized

    @property
    def size(self) -> int:
        return self.document.size


@dataclasses.dataclass(frozen=True)
class MultiTask(Task[Routed]):
    """Mixture of span corruption and text-to-text tasks (Raffel et al. 2020, §3.5.2).

    An example of the source that has both columns of `text_to_text` is used for that task, and any other example for
    `denoising`. The source is usually a `Mixture`: its weights determine how often each kind of example occurs, and
    `Columns` sources in it can add a prefix to the inputs that names the task, such as "translate English to German: ".
    Batch rows have the arrays of `TextToText`, each with the larger of the lengths that the two tasks need.
    """

    denoising: SpanCorruption | UL2 | PrefixLM = SpanCorruption()
    """Task that is used for examples with a single text."""
    text_to_text: TextToText = TextToText()
    """Task that is used for examples with an input and a target text."""

    def __post_init__(self):
        lengths = [self.denoising.input_length, self.text_to_text.input_length]
        if len({length is None for length in lengths}) > 1:
            raise FieldError(
                "data.task.text_to_text.input_length",
                f"={lengths[1]}: expected a number, as denoising.input_length={lengths[0]} is for an encoder-decoder"
                if lengths[1] is None
                else f"={lengths[1]}: expected None, as denoising.input_length=None is for a decoder-only model",
                owner="data.task",
            )

    @property
    def _tasks(self) -> dict[str, Task[Any]]:
        return {"denoising": self.denoising, "text_to_text": self.text_to_text}

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        rows = [task.row for task in self._tasks.values()]
        return {key: max((row[key] for row in rows), key=lambda feature: feature.capacity) for key in rows[0]}

    @property
    def requirement(self) -> str:
        return " and no ".join(task.requirement for task in self._tasks.values())

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        for name, task in self._tasks.items():
            with under(name):
                task.check(tokenizer, pack)

    def read(self, example: Mapping[str, Any]) -> Any:
        name, task = self._choose(example)
        with under(name):
            return task.read(example)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        name, task = self._choose(example)
        with under(name):
            return task.requests(example, folder)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        name, task = self._choose(example)
        with under(name):
            return task.demonstration(example, folder)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Routed:
        name, task = self._choose(example)
        with under(name):
            return Routed(name, task.encode(example, tokenizer))

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        name, task = self._choose(example)
        with under(name):
            return task.written(example, tokenizer) if task.writes else None

    def examples(self, document: Routed, visit: Visit[Routed]) -> list[Example]:
        # Neither task draws another document, so the visit does not have to be converted.
        return self._tasks[document.name].examples(document.document, visit)

    def _choose(self, example: Mapping[str, Any]) -> tuple[str, Task[Any]]:
        """Chooses `text_to_text` for an example that has both its columns, otherwise `denoising`. Returns the name of
        the chosen task, and the task.
        """
        columns = self.text_to_text.inputs, self.text_to_text.targets
        name = "text_to_text" if all(column in example for column in columns) else "denoising"
        return name, self._tasks[name]
