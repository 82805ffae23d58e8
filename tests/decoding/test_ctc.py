"""Searches of CTC against all paths, and n-gram models."""

import itertools
import math

import numpy as np
import pytest

from jaxformer.decoding.ctc import BeamSearch, CtcSearch, Spelled, best_path
from jaxformer.decoding.ngrams import END, START, UNKNOWN, Ngrams
from jaxformer.errors import InputError

TEXTS = ("the dog ran.", "The dog saw the cat!", "a cat ran")
SPELLING = {1: " ", 2: "a", 3: "b"}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def spelled(path):
    """The characters of a path: without repetitions and blanks."""
    return tuple(token for token, _ in itertools.groupby(path) if token)


def probabilities(rows):
    """The probability of each output: the sum of those of its paths."""
    found = {}
    for path in itertools.product(range(rows.shape[1]), repeat=len(rows)):
        share = math.exp(sum(rows[frame, token] for frame, token in enumerate(path)))
        found[spelled(path)] = found.get(spelled(path), 0.0) + share
    return found


def search(rows, scorer=None, **settings):
    settings = {"num_beams": 200, "min_log_probability": -100.0} | settings
    return BeamSearch(CtcSearch(**settings), 0, 1, SPELLING.__getitem__, scorer)(rows)


def test_the_best_path_has_no_repetitions_and_blanks():
    tokens = [0, 2, 2, 0, 2, 3, 3, 1, 0]
    rows = np.where(np.arange(4) == np.array(tokens)[:, None], 0.0, -9.0)
    assert best_path(rows, 0) == [Spelled(2, 1, 3), Spelled(2, 4, 5), Spelled(3, 5, 7), Spelled(1, 7, 8)]
    assert best_path(np.zeros((0, 4)), 0) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_search_finds_the_most_likely_output(seed):
    rows = log_softmax(np.random.default_rng(seed).normal(0, 1.5, (5, 4)))
    every = probabilities(rows)
    assert sum(every.values()) == pytest.approx(1)
    best = max(every, key=every.__getitem__)
    assert tuple(one.token for one in search(rows)) == best
    assert tuple(one.token for one in search(rows, num_beams=2, min_log_probability=-6.0)) in every


def test_a_search_may_differ_from_the_best_path():
    rows = np.log(np.array([[0.6, 0.0001, 0.3999, 1e-9], [0.6, 0.0001, 0.3999, 1e-9]]))
    assert best_path(rows, 0) == []
    assert [one.token for one in search(rows)] == [2]


class OnlyWord:
    """A language model that knows one word."""

    def scores(self, words):
        return [0.0 if word in ("ab", "") else -20.0 for _, word in words]


def test_a_language_model_changes_words():
    shares = np.array([[0.1, 0.1, 0.6, 0.2], [0.1, 0.1, 0.7, 0.1], [0.2, 0.1, 0.5, 0.2], [0.1, 0.7, 0.1, 0.1]])
    rows = np.log(shares)
    assert "".join(SPELLING[one.token] for one in search(rows)).strip() == "a"
    with_model = search(rows, OnlyWord(), lm_weight=1.0, word_bonus=0.0)
    assert "".join(SPELLING[one.token] for one in with_model).strip() == "ab"
    starts = [one.start for one in with_model]
    assert starts == sorted(starts) and all(one.end > one.start for one in with_model)
    ignored = search(rows, OnlyWord(), lm_weight=0.0, word_bonus=0.0)
    assert ignored == search(rows)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_are_probabilities(order, tmp_path):
    model = Ngrams.train(TEXTS, order)
    vocabulary = [words[0] for words in model.probabilities if len(words) == 1]
    assert {"the", "dog", "ran", "saw", "cat", "a", END, UNKNOWN} == set(vocabulary)
    for history in ((), ("the",), ("the", "dog"), ("dog", "the", "cow"), ("saw", "saw")):
        total = sum(math.exp(model.score(history, "" if word == END else word)) for word in vocabulary)
        assert total == pytest.approx(1)
    model.save(tmp_path / "lm.arpa")
    again = Ngrams.read(str(tmp_path / "lm.arpa"))
    for history, word in (((), "the"), (("the",), "dog"), (("the", "dog"), ""), (("x",), "y")):
        assert again.score(history, word) == pytest.approx(model.score(history, word), abs=1e-5)
    assert again.order == order and (START,) in again.probabilities


def test_ngrams_are_interpolated_by_the_number_of_followers():
    model = Ngrams.train(TEXTS, 2)
    # 14 words with the ends, 7 kinds of them and one for unknown words; "the" is followed by "dog" twice and "cat".
    cat = 2 / 21 + 7 / 21 / 8
    assert math.exp(model.score(("the",), "cat")) == pytest.approx(1 / 5 + 2 / 5 * cat)
    assert math.exp(model.score(("the",), "saw")) == pytest.approx(2 / 5 * (1 / 21 + 7 / 21 / 8))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "has no n-grams"),
        (b"\xff\xfe", "not a text file"),
        (b"\\1-grams:\n-1.0\n", "line 2: expected PROBABILITY, 1 words"),
        (b"\\2-grams:\nx a b\n", "line 2: expected PROBABILITY, 2 words"),
        (None, "no such file or directory"),
    ],
)
def test_a_file_of_ngrams_is_refused_in_a_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "lm").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        Ngrams.read(str(tmp_path / "lm"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="needs a beam search; set num_beams above 1"):
        CtcSearch(language_model="lm.arpa")
    with pytest.raises(InputError, match=r"window=5\.0: expected more than twice"):
        CtcSearch(window=5.0, overlap=2.5)
