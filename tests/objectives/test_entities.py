"""Entities are counted as conlleval counts them."""

import numpy as np
import pytest

from jaxformer.objectives.entities import counts, is_bio, kinds, report_entities

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def spans(tags):
    """The entities of a sentence, as conlleval finds chunks: {(kind, first, last)}."""
    found, kind, start = set(), None, 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix != "I" or name != kind):
            found.add((kind, start, place - 1))
            kind = None
        if prefix == "B" or (prefix == "I" and kind is None):
            kind, start = name, place
    return found


def random_batch(seed, rows=4, length=40):
    """Words and tokens that are none, two sentences a row and padding; many tags of both sides are the same."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 5, (rows, length))
    found = np.where(rng.random((rows, length)) < 0.7, right, rng.integers(0, 5, (rows, length)))
    weights = (rng.random((rows, length)) < 0.6).astype(np.float32)
    segments = np.array([[1] * 18 + [2] * 15 + [0] * 7] * rows)
    return found, right, weights * (segments > 0), segments


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_are_those_of_spans(seed):
    found, right, weights, segments = random_batch(seed)
    expected = {kind: np.zeros(3) for kind in kinds(LABELS)}
    for row in range(len(found)):
        for sentence in (1, 2):
            words = (weights[row] > 0) & (segments[row] == sentence)
            ours, theirs = (spans([LABELS[tag] for tag in tags[row][words]]) for tags in (found, right))
            for kind in expected:
                of_kind = [{span for span in part if span[0] == kind} for part in (ours & theirs, ours, theirs)]
                expected[kind] += [*map(len, of_kind)]
    totals = counts(LABELS, found, right, weights, segments)
    for kind, sums in expected.items():
        np.testing.assert_array_equal(totals[kind].sum, sums)
        assert sums.min() > 3, "the test has something to count"
    reported = report_entities(totals)
    same, ours, theirs = sum(expected.values())
    assert reported["entity_precision"] == same / ours and reported["entity_recall"] == same / theirs
    assert reported["entity_f1"] == pytest.approx(2 * same / (ours + theirs))
    assert reported["f1/LOC"] == pytest.approx(2 * expected["LOC"][0] / expected["LOC"][1:].sum())


def test_padding_and_what_is_given_to_it_change_nothing():
    found, right, weights, segments = random_batch(0)
    more = [np.pad(array, ((0, 0), (0, 9))) for array in (found, right, weights, segments)]
    more[0][:, -9:] = 1
    for kind, mean in counts(LABELS, *more).items():
        np.testing.assert_array_equal(mean.sum, counts(LABELS, found, right, weights, segments)[kind].sum)


def test_what_are_bio_tags():
    assert is_bio(LABELS) and kinds(LABELS) == ("PER", "LOC")
    assert not is_bio(("NOUN", "VERB")) and not is_bio(("O", "X")) and not is_bio(("O",))
    assert report_entities({}) == {}
