import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.transforms.next_sentence import full_sentences, sentence_pairs, truncate


def number(lengths, start=0):
    """Sentences of rising numbers: a token is its index in the document."""
    ends = start + np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]


documents = st.lists(st.integers(1, 30), min_size=1, max_size=25).map(number)
seeds = st.integers(0, 2**32)


def other(rng):
    return number(rng.integers(1, 30, size=rng.integers(1, 9)), start=100_000)


@given(documents, st.integers(2, 70), st.sampled_from([0, 0.1, 1]), seeds)
def test_sentence_pairs(sentences, room, short_rate, seed):
    pairs = sentence_pairs(sentences, room, short_rate, np.random.default_rng(seed), other)
    assert bool(pairs) == (len(sentences) > 1)
    boundaries = {int(sentence[0]) for sentence in sentences}
    ends = {int(sentence[-1]) for sentence in sentences}
    last = -1
    for first, second, label in pairs:
        assert len(first) >= 1 and len(second) >= 1 and len(first) + len(second) <= room
        assert np.all(np.diff(first) == 1) and np.all(np.diff(second) == 1)
        assert first[0] > last  # no token is twice in true text
        last = int(first[-1])
        if label:
            assert second[0] >= 100_000
        else:
            assert first[-1] < second[0] < 100_000
            last = int(second[-1])
            if len(first) + len(second) < room:  # nothing was cut off
                assert second[0] == first[-1] + 1
                assert {int(first[0]), int(second[0])} <= boundaries
                assert {int(first[-1]), int(second[-1])} <= ends


@given(documents, seeds)
def test_sentence_pairs_keep_every_sentence(sentences, seed):
    """Sentences after a random second part are given back: the next pair begins with them."""
    room = sum(map(len, sentences)) + 50
    pairs = sentence_pairs(sentences, room, 1, np.random.default_rng(seed), other)
    true = [part for pair in pairs for part in (pair[:1] if pair.label else pair[:2])]
    covered = np.concatenate(true) if true else np.zeros(0)
    assert np.array_equal(covered, np.arange(len(covered)))
    whole = sum(map(len, sentences))
    assert not pairs or len(covered) in (whole, whole - len(sentences[-1]))


@given(documents, seeds, st.integers(2, 40))
@settings(max_examples=50)
def test_random_parts_are_never_the_true_continuation(sentences, seed, room):
    """The other document is a copy of this one, or differs in its first token only."""
    copy = [sentence.copy() for sentence in sentences]
    copy[-1][0] += 1000 * (seed % 2)
    rng = np.random.default_rng(seed)
    text = np.concatenate(sentences)
    for first, second, label in sentence_pairs(sentences, room, 0.1, rng, lambda rng: copy):
        if label and len(first) + len(second) < room:
            following = text[first[-1] + 1 :][: len(second)]
            assert not np.array_equal(second, following)


def test_identical_documents_give_only_true_pairs():
    sentences = number([5, 5])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pairs = sentence_pairs(sentences, 40, 0, rng, lambda rng: sentences[1:])
        assert [pair.label for pair in pairs] == [0]


def test_half_of_the_pairs_are_random():
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(1500):
        sentences = number(rng.integers(1, 40, size=rng.integers(2, 12)))
        labels += [pair.label for pair in sentence_pairs(sentences, 61, 0.1, rng, other)]
    assert abs(np.mean(labels) - 0.5) < 3.5 * 0.5 / np.sqrt(len(labels))


def test_short_rate():
    sentences, others = number([1] * 9000), number([1] * 9000, start=100_000)

    def lengths(short_rate):
        rng = np.random.default_rng(0)
        pairs = sentence_pairs(sentences, 60, short_rate, rng, lambda rng: others)
        return np.array([len(pair.first) + len(pair.second) for pair in pairs])

    assert np.mean(lengths(0) == 60) > 0.98
    assert 0.06 < np.mean(lengths(0.1) < 60) < 0.16
    assert 25 < lengths(1).mean() < 37


@given(st.lists(st.integers(1, 90), max_size=20).map(number), st.integers(1, 50), seeds)
def test_full_sentences_cover_the_document(sentences, room, seed):
    found = full_sentences(sentences, room, 0.2, np.random.default_rng(seed))
    text = np.concatenate([np.zeros(0, int), *sentences])
    assert np.array_equal(np.concatenate([np.zeros(0, int), *found]), text)
    assert all(1 <= len(stretch) <= room for stretch in found)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 80), seeds)
def test_truncate(a, b, room, seed):
    first, second = np.arange(a), np.arange(b)
    head, tail, skipped = truncate(first, second, room, np.random.default_rng(seed))
    assert len(head) + len(tail) == min(a + b, room)
    assert np.array_equal(tail, second[skipped : skipped + len(tail)])
    assert np.array_equal(head, first[head[0] : head[0] + len(head)])
    # Only what was longer lost something.
    assert len(head) == a or len(head) - len(tail) in (0, 1) or len(tail) == b
    assert len(tail) == b or abs(len(head) - len(tail)) <= 1 or len(head) == a
