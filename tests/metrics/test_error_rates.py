"""Error rates are those of jiwer, in any grouping of the documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.transcription import Transcription
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context
from jaxformer.metrics.error_rates import (
    ErrorRates,
    character_error_rate,
    edit_distance,
    normalized,
    word_error_rate,
)

TEXTS = st.lists(st.tuples(*[st.text("ab \t\n.", max_size=12)] * 2), min_size=1, max_size=4)


@given(TEXTS)
def test_rates_are_those_of_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    outputs, references = map(list, zip(*pairs, strict=True))
    assert word_error_rate(outputs, references) == pytest.approx(jiwer.wer(references, outputs))
    assert character_error_rate(outputs, references) == pytest.approx(jiwer.cer(references, outputs))


@pytest.mark.parametrize(
    "output, reference, distance",
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_distances(output, reference, distance):
    assert edit_distance(output, reference) == distance
    assert edit_distance(output.split("t"), reference.split("t")) <= distance


def test_rates_by_hand():
    assert word_error_rate(["the cat sat", "a"], ["the cat sat down", "a b"]) == 2 / 6
    assert character_error_rate(["abd"], ["abc d"]) == 2 / 5
    assert normalized("  Mr. O’Neil said: 'No—way!' ") == "mr o'neil said 'no way '"
    assert np.isclose(word_error_rate(["x y"], [""]), 2)


class Silent(Transcription):
    """Reads no sounds."""

    def encode(self, example, tokenizer):
        return FieldValues(None if example["text"] == "unreadable" else {}, 1)


DOCUMENTS = [
    {"text": "Hello there", "said": "hello, there"},
    {"text": "unreadable", "said": ""},
    {"text": "one two three", "said": "one three"},
    {"text": "", "said": "x"},
    {"text": "four", "said": "four"},
    {"text": "five", "said": "six"},
]
CONTEXT = Context(None, None, None, Silent())


def said(context, documents):
    return [document["said"] for document in documents]


def test_the_metric_does_not_depend_on_the_grouping():
    metric = ErrorRates(3, said)
    indices = metric.select(CONTEXT, DOCUMENTS)
    assert indices == [0, 2, 4]
    whole = metric.score(CONTEXT, DOCUMENTS, indices)
    parts = [metric.score(CONTEXT, DOCUMENTS, [index]) for index in indices]
    merged = metric.score(CONTEXT, DOCUMENTS, [])
    for part in parts:
        merged = metric.merge(merged, part)
    assert merged == whole
    values = metric.compute(whole)
    assert values["wer"] == 2 / 6 and values["wer_normalized"] == 1 / 6
    texts = [(DOCUMENTS[index]["said"], DOCUMENTS[index]["text"]) for index in indices]
    assert values["cer"] == character_error_rate(*zip(*texts, strict=True))
    assert metric.names == tuple(values) and not metric.higher_is_better


def test_a_task_without_references_is_refused():
    class Mute:
        writes = False

    with pytest.raises(InputError, match=r"objective\.scored=2: data\.task=Mute has no text"):
        ErrorRates(2, said).check(Mute())
