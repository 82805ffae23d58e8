"""Scores of summaries are rouge-score's, of the documents with a summary, in any grouping."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context
from jaxformer.metrics.summaries import SummaryScores

DOCUMENTS = [
    {"document": "Cats run. Dogs are running in the sun. A moon.", "summary": "dogs run in the sun"},
    {"document": "...", "summary": "nothing to choose from"},
    {"document": ["The sea is blue", "The king saw it"], "summary": "a king saw the sea"},
    {"document": "No summary.", "summary": " "},
    {"document": "One sentence alone", "summary": "One sentence"},
]


def last(context, documents):
    """A model that chooses the last sentence, and reads two of each document."""
    return [(sentences[-1], len(sentences) <= 2) for sentences in documents]


CONTEXT = Context(None, None, None, SummarySentences())


def test_scores_are_those_of_rouge_score():
    metric = SummaryScores(last, 1)
    indices = metric.select(CONTEXT, DOCUMENTS)
    assert indices == [0, 2, 4] and metric.names[:3] == ("rouge_1", "rouge_2", "rouge_l")
    values = metric.compute(metric.score(CONTEXT, DOCUMENTS, indices))
    assert tuple(values) == metric.names
    texts = {
        "": ["A moon.", "The king saw it", "One sentence alone"],
        "lead_": ["Cats run.", "The sea is blue", "One sentence alone"],
        "oracle_": ["Dogs are running in the sun.", "The king saw it", "One sentence alone"],
    }
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for prefix, outputs in texts.items():
        found = [scorer.score(DOCUMENTS[i]["summary"], text) for i, text in zip(indices, outputs, strict=True)]
        for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            expected = 100 * np.mean([one[theirs].fmeasure for one in found])
            assert values[prefix + name] == pytest.approx(expected), prefix + name
    assert values["read_whole"] == pytest.approx(200 / 3)
    assert values["rouge_1"] < values["oracle_rouge_1"]


def test_groups_of_documents_merge_to_the_same_scores():
    metric = SummaryScores(last, 2)
    parts = [metric.score(CONTEXT, DOCUMENTS, indices) for indices in ([0], [], [2, 4])]
    merged = metric.merge(metric.merge(parts[0], parts[1]), parts[2])
    assert metric.compute(merged) == metric.compute(metric.score(CONTEXT, DOCUMENTS, [0, 2, 4]))


def test_the_first_documents_are_scored():
    assert SummaryScores(last, 1, 2).select(CONTEXT, DOCUMENTS) == [0, 2]
    values = SummaryScores(last, 1, 2).compute(())
    assert set(values.values()) == {0.0}


def test_documents_without_summaries_are_refused():
    with pytest.raises(InputError, match=r"objective.scored=5: data.task=TextPairs has no summaries"):
        SummaryScores(last, 1, 5).check(TextPairs())
