import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.transforms import masking

VOCAB, MASK_ID, SPECIAL = 50, 4, 5
ORDINARY = np.arange(SPECIAL, VOCAB, dtype=np.int32)
WORD_START = np.arange(VOCAB) % 3 != 2  # a third of the pieces continue a word
WORD_START[:SPECIAL] = True


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(2, 40))
    tokens = rng.integers(0, VOCAB, shape, dtype=np.int32)
    maskable = (tokens >= SPECIAL) & (np.arange(shape[1]) < rng.integers(1, shape[1] + 1))
    rate, limit = draw(st.sampled_from([0.01, 0.15, 0.5, 0.9])), draw(st.integers(1, shape[1]))
    return tokens, maskable, rng, masking.Masking(rate, limit, MASK_ID, ORDINARY)


def run(case, words=None):
    tokens, maskable, rng, options = case
    return masking.mask(tokens, maskable, options, rng, words)


def by_example(masked):
    for start, stop in zip(masked.starts, masked.starts[1:], strict=False):
        yield masked.positions[start:stop], masked.targets[start:stop]


@given(cases())
def test_masking(case):
    tokens, maskable, _, options = case
    original = tokens.copy()
    masked = run(case)
    assert np.array_equal(tokens, original)
    untouched = np.ones(tokens.shape, bool)
    for row, (positions, targets) in enumerate(by_example(masked)):
        available = maskable[row].sum()
        wanted = min(max(1, round(available * options.rate)), options.limit, available)
        assert len(positions) == wanted
        assert np.all(np.diff(positions) > 0)
        assert maskable[row, positions].all()
        assert np.array_equal(targets, tokens[row, positions])
        untouched[row, positions] = False
    assert np.array_equal(masked.tokens[untouched], tokens[untouched])
    hidden = masked.tokens[~untouched]
    assert np.all((hidden == MASK_ID) | (hidden >= SPECIAL))
    assert masked.positions.dtype == masked.targets.dtype == masked.tokens.dtype == np.int32


@given(cases())
def test_whole_words(case):
    tokens, maskable, _, options = case
    words = masking.words(tokens, maskable, WORD_START)
    masked = run(case, words)
    for row, (positions, _) in enumerate(by_example(masked)):
        assert len(positions) <= options.limit
        assert (len(positions) > 0) == maskable[row].any()
        assert maskable[row, positions].all()
        for word in np.unique(words[row, positions]):
            pieces = np.flatnonzero((words[row] == word) & maskable[row])
            assert len(pieces) > options.limit or set(pieces) <= set(positions)


def test_words():
    tokens = np.array([[2, 6, 8, 8, 7, 3, 8, 8]])  # 8 continues a word; 2 and 3 are special
    words = masking.words(tokens, tokens >= SPECIAL, WORD_START)[0]
    assert len({words[1], words[4], words[6]}) == 3
    assert words[1] == words[2] == words[3] and words[6] == words[7]


@pytest.mark.parametrize("whole", [False, True])
def test_shares(whole):
    rng = np.random.default_rng(0)
    tokens = rng.integers(SPECIAL, VOCAB, (400, 100), dtype=np.int32)
    maskable = np.ones(tokens.shape, bool)
    words = masking.words(tokens, maskable, WORD_START) if whole else None
    masked = run((tokens, maskable, rng, masking.Masking(0.15, 20, MASK_ID, ORDINARY)), words)
    now = np.concatenate([masked.tokens[row, at] for row, (at, _) in enumerate(by_example(masked))])
    assert 0.13 < len(now) / tokens.size < 0.151
    assert abs(np.mean(now == MASK_ID) - 0.8) < 0.02
    assert abs(np.mean(now == masked.targets) - 0.1 * (1 + 1 / len(ORDINARY))) < 0.02
    # Every position is equally likely.
    counts = np.bincount(masked.positions, minlength=100)
    assert counts.std() < 2 * np.sqrt(counts.mean())
