"""Denoising and text to text in one stream."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.tasks.base import Example, Feature, Task, Written
from jaxformer.data.tasks.language import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import UL2, SpanCorruption
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError


class Routed(NamedTuple):
    """An encoded document and the task that it is for."""

    task: Task
    document: Any

    @property
    def size(self) -> int:
        return self.document.size


@dataclasses.dataclass(frozen=True)
class MultiTask(Task):
    """T5's multi-task pretraining: hidden spans and tasks with prefixes, mixed (Raffel et al. 2020, §3.5.2).

    An example that has both columns of `text_to_text` is for that task, any other for `denoising`. How often each comes
    is for the weights of a `Mixture` of sources to say, and which task a pair is for, for the prefix of its `Columns`.
    Rows as those of `TextToText`, each array as long as the longer one of the two.
    """

    denoising: SpanCorruption | UL2 | PrefixLM = SpanCorruption()
    """What is learned from a text."""
    text_to_text: TextToText = TextToText()
    """What is learned from a pair of texts."""

    def __post_init__(self):
        if len({task.input_length is None for task in self._tasks}) > 1:
            lengths = [task.input_length for task in self._tasks]
            raise InputError(
                f"task.denoising.input_length {lengths[0]}, task.text_to_text.input_length {lengths[1]}: both are for "
                "an encoder-decoder or both, with None, for a decoder alone"
            )

    @property
    def _tasks(self) -> tuple[Task, Task]:
        return self.denoising, self.text_to_text

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        rows = [task.row for task in self._tasks]
        return {key: max((row[key] for row in rows), key=lambda feature: feature.capacity) for key in rows[0]}

    @property
    def need(self) -> str:
        return " and no ".join(task.need for task in self._tasks)

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        for task in self._tasks:
            task.check(tokenizer, pack)

    def read(self, example: Mapping[str, Any]) -> Any:
        return self._task_of(example).read(example)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return self._task_of(example).requests(example, folder)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Routed:
        task = self._task_of(example)
        return Routed(task, task.encode(example, tokenizer))

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        task = self._task_of(example)
        return task.written(example, tokenizer) if task.writes else None

    def _task_of(self, example: Mapping[str, Any]) -> Task:
        columns = self.text_to_text.inputs, self.text_to_text.targets
        return self.text_to_text if all(column in example for column in columns) else self.denoising

    def examples(
        self,
        document: Routed,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Routed],
    ) -> list[Example]:
        # Neither task draws another document.
        return document.task.examples(document.document, tokenizer, rng, draw)
