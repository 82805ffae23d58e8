import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.transforms import span_corruption
from jaxformer.errors import InputError

rates = st.floats(0.01, 0.99)
spans = st.floats(1, 70)


def runs(mask):
    """Lengths of the stretches of equal values."""
    ends = np.flatnonzero(np.diff(mask.astype(int))) + 1
    return np.diff(ends, prepend=0, append=len(mask))


@given(st.integers(2, 300), rates, spans | st.none(), st.integers(0, 99))
def test_noise_mask_has_the_requested_rate_and_spans(length, rate, mean_span, seed):
    mask = span_corruption.noise_mask(length, rate, mean_span, np.random.default_rng(seed))
    assert mask.shape == (length,) and mask.dtype == bool
    assert not mask[0] and mask[-1]
    sizes = span_corruption.sizes(length, rate, mean_span)
    if mean_span is None:
        assert len(runs(mask)) == 2 and mask.sum() <= sizes.targets
        return
    hidden = min(max(round(length * rate), 1), length - 1)
    assert mask.sum() == hidden
    count = len(runs(mask)) // 2
    assert count == min(max(round(hidden / mean_span), 1), length - hidden) == sizes.sentinels
    assert (sizes.inputs, sizes.targets) == (length - hidden + count, hidden + count)


@given(st.integers(2, 200), rates, spans, st.integers(0, 99))
def test_corruption_inverts(sentinel_tokenizer, length, rate, mean_span, seed):
    rng = np.random.default_rng(seed)
    # No more spans than the tokenizer has sentinels.
    mean_span = max(mean_span, length * rate / len(sentinel_tokenizer.sentinel_ids) * 1.1)
    tokens = rng.choice(sentinel_tokenizer.ordinary_ids, length)
    mask = span_corruption.noise_mask(length, rate, mean_span, rng)
    inputs, targets = span_corruption.corrupt(tokens, mask, sentinel_tokenizer.sentinel_ids)
    sizes = span_corruption.sizes(length, rate, mean_span)
    assert (len(inputs), len(targets)) == (sizes.inputs, sizes.targets)
    assert inputs.dtype == targets.dtype == np.int32
    assert np.array_equal(span_corruption.restore(inputs, targets, sentinel_tokenizer), tokens)
    end, pad = [sentinel_tokenizer.eos_id], [sentinel_tokenizer.pad_id]
    rows = np.concatenate([inputs, end, pad, pad]), np.concatenate([pad, targets, end, targets])
    assert np.array_equal(span_corruption.restore(*rows, sentinel_tokenizer), tokens)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 9))
def test_corrupt_inverts_for_any_mask(sentinel_tokenizer, mask, seed):
    tokens = np.random.default_rng(seed).choice(sentinel_tokenizer.ordinary_ids, len(mask))
    parts = span_corruption.corrupt(tokens, np.array(mask), sentinel_tokenizer.sentinel_ids)
    assert np.array_equal(span_corruption.restore(*parts, sentinel_tokenizer), tokens)


def test_the_example_of_the_paper(sentinel_tokenizer):
    text = " ".join(f"w{number}" for number in range(10))
    mask = np.isin(np.arange(10), [2, 3, 8])
    inputs, targets = span_corruption.corrupt(sentinel_tokenizer.encode(text), mask, sentinel_tokenizer.sentinel_ids)
    assert sentinel_tokenizer.decode(inputs) == "w0 w1 <extra_id_0> w4 w5 w6 w7 <extra_id_1> w9"
    assert sentinel_tokenizer.decode(targets) == "<extra_id_0> w2 w3 <extra_id_1> w8"
    # The first sentinel is the vocabulary's last piece.
    assert targets[0] == sentinel_tokenizer.vocab_size - 1 and targets[3] == sentinel_tokenizer.vocab_size - 2


def test_a_stretch_needs_a_limit():
    with pytest.raises(ValueError, match="expected at least one number"):
        span_corruption.stretch_length(0.15, 3.0, None, None)


def test_the_lengths_of_the_paper():
    # 512 inputs and 114 targets (Raffel et al. 2020, §3.1.4).
    length = span_corruption.stretch_length(0.15, 3.0, 512, None)
    assert length == 568
    sizes = span_corruption.sizes(length, 0.15, 3.0)
    assert (sizes.inputs + 1, sizes.targets + 1) == (512, 114)


@given(rates.filter(lambda rate: rate < 0.9), spans | st.none(), st.integers(4, 120), st.integers(4, 120))
def test_stretch_length_fills_the_room(rate, mean_span, input_length, length):
    def fits(count):
        sizes = span_corruption.sizes(count, rate, mean_span)
        return sizes.inputs + 1 <= input_length and sizes.targets + 1 <= length

    found = span_corruption.stretch_length(rate, mean_span, input_length, length)
    assert found >= 2 and all(map(fits, range(2, found + 1))) and not fits(found + 1)
    shared = span_corruption.stretch_length(rate, mean_span, None, length)
    assert (
        max((span_corruption.sizes(count, rate, mean_span).both + 1 for count in range(2, shared + 1)), default=0)
        <= length
    )
    assert span_corruption.sizes(shared + 1, rate, mean_span).both + 1 > length


def test_noise_mask_hides_every_position():
    rng = np.random.default_rng(0)
    masks = np.array([span_corruption.noise_mask(100, 0.15, 3.0, rng) for _ in range(2000)])
    assert np.all(masks.sum(axis=1) == 15)
    # Towards the borders, which are kept and hidden by construction, the share differs.
    assert np.all(np.abs(masks[:, 20:80].mean(axis=0) - 0.15) < 0.05)
    hidden = np.concatenate([runs(mask)[1::2] for mask in masks])
    assert hidden.mean() == 3 and {1, 2, 3, 4, 5, 6, 7, 8} <= set(hidden)


def test_noise_mask_of_a_prefix_lm_has_the_requested_rate():
    rng = np.random.default_rng(0)
    rests = [span_corruption.noise_mask(100, 0.25, None, rng).sum() for _ in range(4000)]
    assert set(rests) == set(range(1, 50)) and abs(np.mean(rests) - 25) < 1


@pytest.mark.parametrize(
    "inputs, targets, words",
    [
        ("w1 <extra_id_0> w2", "w3", "<extra_id_0> occurs once in the inputs and never in the targets"),
        ("w1 w2", "<extra_id_3> w3", "<extra_id_3> occurs never in the inputs and once in the targets"),
        ("w1 <extra_id_0>", "<extra_id_0> w3 <extra_id_0>", "occurs once in the inputs and twice in the targets"),
        ("<extra_id_0> <extra_id_0> <extra_id_0>", "<extra_id_0> w3", "3 times in the inputs and once in the targets"),
        ("w1 <extra_id_0>", "w2 <extra_id_0> w3", "the targets begin with 'w2'; they must begin with a sentinel"),
    ],
)
def test_restore_refuses_unpaired_sentinels(sentinel_tokenizer, inputs, targets, words):
    parts = map(sentinel_tokenizer.encode_with_sentinels, (inputs, targets))
    with pytest.raises(InputError, match=words) as caught:
        span_corruption.restore(*parts, sentinel_tokenizer)
    assert "\n" not in str(caught.value)


def test_restore_accepts_spans_in_any_order(sentinel_tokenizer):
    encode = sentinel_tokenizer.encode_with_sentinels
    parts = encode("<extra_id_0> w1 <extra_id_1>"), encode("<extra_id_1> w2 <extra_id_0>")
    assert sentinel_tokenizer.decode(span_corruption.restore(*parts, sentinel_tokenizer)) == "w1 w2"
    parts = encode("w1 w2"), encode("w3")
    assert sentinel_tokenizer.decode(span_corruption.restore(*parts, sentinel_tokenizer)) == "w1 w2 w3"
