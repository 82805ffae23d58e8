"""Spans in windows: where an answer's tokens are, that windows leave nothing out, what is refused."""

import itertools

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.errors import InputError

CONTEXT = "  w0 w1x0x1 w2, w3 w4 w5x2 w6 w7 w8 w9"


def example(answer=None, context=CONTEXT, question="w50 w51"):
    starts = [] if answer is None else [context.index(answer)]
    return {
        "question": question,
        "context": context,
        "answers": {"text": [answer][: len(starts)], "answer_start": starts},
    }


def examples(task, tokenizer, *args, **kwargs):
    document = task.encode(example(*args, **kwargs), tokenizer)
    return task.examples(document, Visit(tokenizer, np.random.default_rng(0), None))


def spelt(tokenizer, ids):
    return " ".join(tokenizer.pieces[number] for number in ids)


@pytest.mark.parametrize(
    "answer, tokens", [("w2", "w2"), ("w1x0x1", "w1 ##x0 ##x1"), ("w3 w4 w5", "w3 w4 w5"), ("x1 w2", "##x1 w2")]
)
def test_answers_in_characters_become_tokens(answer, tokens, tokenizer):
    (found,) = examples(AnswerSpans(40, 20, 8), tokenizer, answer)
    span = found["tokens"][found["starts"][0] : found["ends"][0] + 1]
    assert spelt(tokenizer, span) == tokens
    assert AnswerSpans().row.keys() == found.keys()


def test_a_window_is_question_and_context(tokenizer):
    (found,) = examples(AnswerSpans(40, 20, 8), tokenizer, context="w1 w2x0", answer="w1")
    assert spelt(tokenizer, found["tokens"]) == "[CLS] w50 w51 [SEP] w1 w2 ##x0 [SEP]"
    assert found["token_types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found["spannable"].tolist() == [1, 0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("length, stride", [(12, 1), (12, 3), (12, 5), (17, 4), (60, 7)])
def test_windows_cover_the_context_and_complete_answers(length, stride, tokenizer):
    task = AnswerSpans(length, stride, question_length=4)
    document = task.encode(example("w5x2"), tokenizer)
    windows = task.windows(document, tokenizer)
    covered = np.zeros(len(document.context), bool)
    for window in windows:
        inner = window.tokens[window.before : -1]
        assert len(window.tokens) <= length and len(inner) > 0
        assert np.array_equal(document.context[window.start : window.start + len(inner)], inner)
        covered[window.start : window.start + len(inner)] = True
    assert covered.all()
    assert all(0 < b.start - a.start <= stride for a, b in itertools.pairwise(windows))
    answered = 0
    for window, found in zip(windows, task.examples(document, Visit(tokenizer, None, None)), strict=True):
        start, stop = found["starts"][0], found["ends"][0]
        inside = (
            window.start <= document.answer[0]
            and document.answer[1] < window.start + len(window.tokens) - window.before - 1
        )
        if inside:
            assert spelt(tokenizer, found["tokens"][start : stop + 1]) == "w5 ##x2"
        else:
            assert (start, stop) == (0, 0)
        answered += inside
    assert answered >= 1


def test_a_missing_answer_is_the_first_token(tokenizer):
    (found,) = examples(AnswerSpans(40, 20, 8), tokenizer)
    assert (found["starts"][0], found["ends"][0], found["weights"][0]) == (0, 0, 1)


def test_empty_texts_give_no_example(tokenizer):
    assert examples(AnswerSpans(40, 20, 8), tokenizer, context=" ") == []
    assert examples(AnswerSpans(40, 20, 8), tokenizer, question="") == []


def test_a_long_question_loses_its_end(tokenizer):
    found = examples(AnswerSpans(40, 20, 3), tokenizer, "w2", question=" ".join(f"w{n}" for n in range(100, 120)))[0]
    assert spelt(tokenizer, found["tokens"][:5]) == "[CLS] w100 w101 w102 [SEP]"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"answers": {"text": ["w3"], "answer_start": [3]}},
            "answer 'w3': not in its context at character 3, where '0 '",
        ),
        ({"answers": {"text": [""], "answer_start": [3]}}, "answer '': not in its context"),
        ({"answers": {"text": ["w9x"], "answer_start": [999]}}, "answer 'w9x': not in its context at character 999"),
        (
            {"answers": ["w3"]},
            "data.task.answers='answers': the column holds ['w3']; expected lists 'text' and 'answer_start'",
        ),
        (
            {"context": 3},
            "data.task.context='context': the column holds 3; expected a text; the columns are 'question', ",
        ),
    ],
)
def test_errors_in_examples_are_one_line(changes, message, tokenizer):
    with pytest.raises(InputError) as caught:
        AnswerSpans(40, 20, 8).encode(example("w2") | changes, tokenizer)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"length": 60}, "data.task.length=60: too short for a question of 64 tokens"),
        ({"stride": 318}, "data.task.stride=318: skips tokens; expected at most 317"),
        ({"stride": 0}, "data.task.stride=0: expected at least 1"),
    ],
)
def test_invalid_sizes_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        AnswerSpans(**sizes)
