"""Entities are counted as conlleval counts them."""

import numpy as np
import pytest

from jaxformer.data.tasks.tagging import has_entities, kinds
from jaxformer.metrics.entities import ENTITIES, EntityScores, counts

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
    metric = EntityScores(LABELS, lambda context, documents, indices: {})
    reported = metric.compute(metric.update({ENTITIES + kind: mean for kind, mean in totals.items()}))
    assert tuple(reported) == metric.names and metric.update({}) is None
    same, ours, theirs = sum(expected.values())
    assert reported["entity_precision"] == same / ours and reported["entity_recall"] == same / theirs
    assert reported["entity_f1"] == pytest.approx(2 * same / (ours + theirs))
    assert reported["f1/LOC"] == pytest.approx(2 * expected["LOC"][0] / expected["LOC"][1:].sum())


@pytest.mark.slow
def test_padding_and_what_is_given_to_it_change_nothing():
    found, right, weights, segments = random_batch(0)
    more = [np.pad(array, ((0, 0), (0, 9))) for array in (found, right, weights, segments)]
    more[0][:, -9:] = 1
    for kind, mean in counts(LABELS, *more).items():
        np.testing.assert_array_equal(mean.sum, counts(LABELS, found, right, weights, segments)[kind].sum)


def test_what_are_the_tags_of_entities():
    assert has_entities(LABELS) and kinds(LABELS) == ("PER", "LOC")
    assert not has_entities(("NOUN", "VERB")) and not has_entities(("O", "X")) and not has_entities(("O",))
    for prefixes in ("BIES", "BILU", "BI", "I"):
        labels = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC") for prefix in prefixes))
        assert has_entities(labels) and kinds(labels) == ("PER", "LOC")
        assert not has_entities((*labels, "NOUN"))


def chunks(tags):
    """The chunks of a sentence by conlleval's two functions, which also know E and S: {(kind, first, last)}."""

    def ends(before, kind, tag, other):
        return (
            before in ("E", "S")
            or (before in ("B", "I") and tag in ("B", "S", "O"))
            or (before not in ("O",) and kind != other)
        )

    def begins(before, kind, tag, other):
        return (
            tag in ("B", "S")
            or (before in ("E", "S", "O") and tag in ("E", "I"))
            or (tag not in ("O",) and kind != other)
        )

    found, start, before, kind = set(), None, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, other = tag.partition("-")
        if ends(before, kind, prefix, other) and start is not None:
            found.add((kind, start, place - 1))
            start = None
        if begins(before, kind, prefix, other):
            start = place
        before, kind = prefix, other
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("letters", ["BIES", "BILU"])
def test_bioes_and_bilou_are_counted_as_conlleval_does(letters, seed):
    """Random tags; many are invalid sequences."""
    labels = ("O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in letters))
    as_bioes = {label: label.replace("L-", "E-").replace("U-", "S-") for label in labels}
    rng = np.random.default_rng(seed)
    right = rng.integers(0, len(labels), (3, 60))
    found = np.where(rng.random(right.shape) < 0.8, right, rng.integers(0, len(labels), right.shape))
    ones = np.ones(right.shape, np.float32)
    totals = counts(labels, found, right, ones, ones.astype(int))
    for kind in ("PER", "LOC"):
        expected = np.zeros(3)
        for row in range(3):
            ours, theirs = (chunks([as_bioes[labels[tag]] for tag in tags[row]]) for tags in (found, right))
            of_kind = [{chunk for chunk in part if chunk[0] == kind} for part in (ours & theirs, ours, theirs)]
            expected += [*map(len, of_kind)]
        np.testing.assert_array_equal(totals[kind].sum, expected)
        assert expected.min() > 10


@pytest.mark.slow
def test_the_same_entities_count_alike_in_every_scheme():
    rng = np.random.default_rng(0)
    spans = {"BI": [], "BIES": [], "BILU": []}
    while len(spans["BI"]) < 200:
        length, kind = int(rng.integers(1, 5)), rng.choice(["PER", "LOC"])
        spans["BI"] += [f"B-{kind}", *[f"I-{kind}"] * (length - 1), *["O"] * int(rng.integers(0, 3))]
        for name, last, only in (("BIES", "E", "S"), ("BILU", "L", "U")):
            word = [only] if length == 1 else ["B", *"I" * (length - 2), last]
            spans[name] += [f"{letter}-{kind}" for letter in word]
            spans[name] += ["O"] * (len(spans["BI"]) - len(spans[name]))
    sums = []
    for letters, tags in spans.items():
        labels = ("O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in letters))
        ids = np.array([[labels.index(tag) for tag in tags]])
        ones = np.ones(ids.shape, np.float32)
        totals = counts(labels, ids, ids, ones, ones.astype(int))
        sums.append([np.asarray(totals[kind].sum).tolist() for kind in ("PER", "LOC")])
    assert sums[0] == sums[1] == sums[2]
    assert sum(kind[2] for kind in sums[0]) == sum(tag.startswith("B-") for tag in spans["BI"])
