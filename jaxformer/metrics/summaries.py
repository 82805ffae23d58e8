"""ROUGE scores of extractive summaries and, for comparison, of two baselines: the first sentences of the document, and
an oracle that selects the sentences most similar to the reference summary.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.transforms import summaries
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, DocumentMetric
from jaxformer.metrics.texts import ROUGE, text_scores


class Summaries(NamedTuple):
    """Summaries of one document: the one that the model selected, two baselines (`lead` and `oracle`), and the
    reference.
    """

    chosen: str
    """Sentences that the model selected, as one text."""
    lead: str
    """First sentences of the document, at most `SummaryScores.sentences`, as one text."""
    oracle: str
    """Sentences that are most similar to the reference, at most `SummaryScores.sentences`, as one text. They are
    selected one by one, such that ROUGE increases most.
    """
    reference: str
    """Reference summary that the others are compared with."""
    whole: bool
    """Whether the whole document fits in the model's input. Otherwise, its end is cut off."""


KINDS = {"chosen": "", "lead": "lead_", "oracle": "oracle_"}
"""Maps each field of `Summaries` with a summary to score to the prefix of its metric names."""


@dataclasses.dataclass(frozen=True)
class SummaryScores(DocumentMetric[tuple[Summaries, ...]]):
    """ROUGE-1, -2 and -L (Lin 2004) of summaries of held-out documents, from 0 to 100.

    Metrics whose names begin with `lead_` or `oracle_` score two baselines: the first sentences of the document, and
    the sentences that are most similar to the reference. `read_whole` is the percentage of documents that fit in the
    model's input.
    """

    summarize: Callable[[Context, Sequence[Sequence[str]]], Sequence[tuple[str, bool]]]
    """Function that takes the context and documents as lists of sentences. For each document, it returns the summary,
    and whether the document fits in the model's input.
    """
    sentences: int
    """Maximum number of sentences in a summary."""
    count: int | None = None
    """Number of documents to score, from the start of the data. If None, all are scored."""

    names = (*(prefix + name for prefix in KINDS.values() for name in ROUGE), "read_whole")
    higher_is_better = True

    def check(self, task: Any) -> None:
        if not isinstance(task, SummarySentences):
            raise InputError(
                f"objective.scored={self.count}: data.task={type(task).__name__} has no summaries to compare with; "
                "expected 0, or the task SummarySentences"
            )

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[int]:
        found: list[int] = []
        for index in range(len(documents)):
            if len(found) == self.count:
                break
            if all(context.task.read(documents[index])):
                found.append(index)
        return found

    def score(
        self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]
    ) -> tuple[Summaries, ...]:
        read = read_each(documents, context.task.read, indices)
        chosen = self.summarize(context, [sentences for sentences, _ in read])
        return tuple(
            Summaries(
                text,
                " ".join(sentences[: self.sentences]),
                " ".join(sentences[index] for index in summaries.oracle(sentences, reference, self.sentences)),
                reference,
                whole,
            )
            for (text, whole), (sentences, reference) in zip(chosen, read, strict=True)
        )

    def merge(self, state: tuple[Summaries, ...], other: tuple[Summaries, ...]) -> tuple[Summaries, ...]:
        return state + other

    def compute(self, state: tuple[Summaries, ...]) -> dict[str, float]:
        references = [one.reference for one in state]
        values = {}
        for kind, prefix in KINDS.items():
            scores = text_scores([getattr(one, kind) for one in state], references, ("rouge",))
            values |= {prefix + name: score for name, score in scores.items()}
        return values | {"read_whole": 100 * sum(one.whole for one in state) / max(len(state), 1)}
