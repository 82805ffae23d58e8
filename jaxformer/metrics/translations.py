"""BLEU and chrF of translations of speech."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.base import Task
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, DocumentMetric
from jaxformer.metrics.error_rates import first_recordings
from jaxformer.metrics.texts import Texts, text_scores


@dataclasses.dataclass(frozen=True)
class TranslationScores(DocumentMetric[Texts]):
    """BLEU and chrF of the translations that a model generates for the first `count` held-out recordings."""

    count: int
    """Maximum number of recordings to score, from the start of the data."""
    generate: Callable[[Context, Sequence[Mapping[str, Any]]], Sequence[str]]
    """Function that takes the context and examples of the data source, and returns a generated translation for each
    example.
    """

    names = ("bleu", "chrf")
    higher_is_better = True

    def check(self, task: Task) -> None:
        if getattr(task, "translation", None) is None:
            raise InputError(
                f"objective.translated={self.count}: data.task={type(task).__name__} reads no translations; expected "
                "0, or a Transcription with `translation`"
            )

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[int]:
        return first_recordings(context, documents, self.count)

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Texts:
        field = context.task.translation
        references = read_each(documents, lambda one: field.read(one, "data.task.translation.column"), indices)
        outputs = self.generate(context, [documents[index] for index in indices])
        return tuple(zip(outputs, references, strict=True))

    def merge(self, state: Texts, other: Texts) -> Texts:
        return state + other

    def compute(self, state: Texts) -> dict[str, float]:
        outputs, references = zip(*state, strict=True) if state else ((), ())
        return text_scores(outputs, references)
