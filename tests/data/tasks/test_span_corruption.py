import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.span_corruption import MIXTURE, UL2, Denoiser, SpanCorruption
from jaxformer.data.transforms import span_corruption
from jaxformer.errors import InputError

FEW = tuple(dataclasses.replace(denoiser, mean_span=denoiser.mean_span and 4.0) for denoiser in MIXTURE)


def examples(task, tokenizer, count, seed=0):
    """The examples of a document of `count` words, which keep what the task's row promises."""
    task.check(tokenizer, pack=False)
    document = task.encode({"text": " ".join(f"w{number}" for number in range(count))}, tokenizer)
    found = task.examples(document, Visit(tokenizer, np.random.default_rng(seed), None))
    for arrays in found:
        assert set(arrays) == set(task.row)
        for key, feature in task.row.items():
            assert arrays[key].dtype == feature.dtype and arrays[key].ndim == 1
            assert 1 <= len(arrays[key]) <= feature.capacity
    return document.tokens, found


def parts(example, tokenizer):
    """Inputs and targets of an example, with or without an encoder."""
    if "inputs" in example:
        assert example["tokens"].tolist() == [tokenizer.pad_id, *example["targets"][:-1]]
        assert np.all(example["weights"] == 1) and len(example["weights"]) == len(example["targets"])
        return example["inputs"], example["targets"]
    given_ = int(example["prefix"].sum())
    assert np.all(example["prefix"][:given_] == 1)
    assert np.array_equal(example["weights"], np.arange(len(example["tokens"])) >= given_ - 1)
    assert np.array_equal(example["tokens"][1:], example["targets"][:-1])
    return example["tokens"][:given_], example["targets"][given_ - 1 :]


tasks = st.sampled_from(
    [
        SpanCorruption(24),
        SpanCorruption(24, 9, rate=0.4, mean_span=1.0),
        SpanCorruption(None, 24, rate=0.3, mean_span=5.0),
        UL2(24, denoisers=FEW),
        UL2(24, 16, denoisers=FEW),
        UL2(None, 24, denoisers=FEW),
    ]
)


@given(tasks, st.integers(1, 150), st.integers(0, 99))
def test_span_corruption_can_be_inverted(sentinel_tokenizer, task, count, seed):
    tokens, found = examples(task, sentinel_tokenizer, count, seed)
    restored = []
    for example in found:
        inputs, targets = parts(example, sentinel_tokenizer)
        assert inputs[-1] == targets[-1] == sentinel_tokenizer.eos_id
        restored += span_corruption.restore(inputs, targets, sentinel_tokenizer).tolist()
    assert len(tokens) - len(restored) in (0, 1) and restored == tokens[: len(restored)].tolist()


def test_long_documents_fill_their_rows(sentinel_tokenizer):
    for task in (SpanCorruption(100), SpanCorruption(100, 23), SpanCorruption(None, 100)):
        _, found = examples(task, sentinel_tokenizer, 1000)
        # Not more than what one token more would have taken is left free.
        for example in found[:-1]:
            assert len(example["tokens"]) >= task.row["tokens"].capacity - 2
            assert "inputs" not in example or len(example["inputs"]) == 100


def test_target_lengths_are_those_of_the_papers():
    assert SpanCorruption().target_length == SpanCorruption().row["tokens"].capacity == 114
    assert SpanCorruption().row["inputs"].capacity == 512
    assert UL2().target_length == UL2().row["targets"].capacity == 512
    assert set(UL2(None, 512).row) == {"tokens", "targets", "weights", "prefix"}
    assert [(d.rate, d.mean_span) for d in UL2().denoisers if d.mode == "[X]"] == [
        (0.5, 3.0),
        (0.5, 8.0),
        (0.15, 64.0),
        (0.5, 64.0),
    ]


def hidden_share(example, tokenizer):
    inputs, targets = parts(example, tokenizer)
    kept, hidden = (np.sum(~tokenizer.is_special[ids]) for ids in (inputs, targets))
    return hidden / (kept + hidden)


def test_ul2_draws_denoisers_by_weight(sentinel_tokenizer):
    denoisers = (Denoiser(0.1, 4.0, weight=3.0), Denoiser(0.8, 4.0, weight=0.0), Denoiser(0.5, 4.0, weight=1.0))
    shares = []
    for seed in range(60):
        _, found = examples(UL2(64, denoisers=denoisers), sentinel_tokenizer, 1500, seed)
        shares += [hidden_share(example, sentinel_tokenizer) for example in found[:-1]]
    low, high = (np.mean(np.abs(np.array(shares) - share) < 0.05) for share in (0.1, 0.5))
    assert low + high == 1 and abs(low - 0.75) < 0.05


def test_ul2_sequential_denoiser_has_no_sentinel(sentinel_tokenizer):
    task = UL2(64, denoisers=(Denoiser(0.25, None),))
    tokens, found = examples(task, sentinel_tokenizer, 640)
    shares = [hidden_share(example, sentinel_tokenizer) for example in found]
    assert len(found) == 10 and min(shares) < 0.2 < 0.3 < max(shares) < 0.5
    ids = np.concatenate([np.concatenate([parts(e, sentinel_tokenizer)[i][:-1] for i in (0, 1)]) for e in found])
    assert np.array_equal(ids, tokens)


@pytest.mark.parametrize("input_length, length", [(40, None), (None, 60)])
def test_ul2_modes_precede_the_inputs(sentinel_tokenizer, input_length, length):
    denoisers = (Denoiser(0.2, 4.0, mode="w4000 w4001"), Denoiser(0.25, None, mode="w4002"))
    for modes in (True, False):
        task = UL2(input_length, length, denoisers, modes)
        tokens, found = examples(task, sentinel_tokenizer, 500)
        restored, seen = [], set()
        for example in found:
            ids = span_corruption.restore(*parts(example, sentinel_tokenizer), sentinel_tokenizer).tolist()
            text = sentinel_tokenizer.decode(ids)
            mode = next((d.mode for d in denoisers if text.startswith(d.mode)), "")
            seen.add(mode)
            restored += ids[len(mode.split()) :]
        assert seen == ({"w4000 w4001", "w4002"} if modes else {""})
        assert restored == tokens[: len(restored)].tolist() and len(restored) >= len(tokens) - 1


def test_too_few_sentinels_are_named(tokenizer, sentinel_tokenizer):
    for task, words in [
        (
            SpanCorruption(512),
            "data.task=SpanCorruption: a row has up to 28 spans, but the tokenizer has 0 sentinels; ",
        ),
        (
            UL2(512),
            r"UL2: a row has up to 128 spans, .* tokenizer.sentinels=128 or .* \(rate 0.5 in spans of 3.0 of 766",
        ),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            task.check(tokenizer, pack=False)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="up to 43 spans, but the tokenizer has 40 sentinels"):
        SpanCorruption(768).check(sentinel_tokenizer, pack=True)
    SpanCorruption(512).check(sentinel_tokenizer, pack=True)
    UL2(512, denoisers=(Denoiser(0.25, None),)).check(tokenizer, pack=True)  # which needs none


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: UL2(denoisers=(Denoiser(weight=0.0), Denoiser(weight=0.0))),
            r"denoisers: weights \(0.0, 0.0\); expected",
        ),
        (lambda: UL2(denoisers=()), r"data.task.denoisers: weights \(\); expected at least one"),
        (lambda: UL2(None), "data.task.length=None: expected a number, or one for data.task.input_length"),
        (lambda: SpanCorruption(None), "data.task.length=None: expected a number, or one for data.task.input_length"),
        (lambda: SpanCorruption(2), "data.task.input_length=2: too short for two tokens"),
        (lambda: SpanCorruption(512, 2), "data.task.input_length=512 with length=2: too short for two tokens"),
        (lambda: SpanCorruption(None, 4), "data.task.length=4: too short"),
        (lambda: SpanCorruption(rate=0.0), "data.task.rate=0.0: expected above 0, below 1"),
        (lambda: SpanCorruption(mean_span=0.5), "data.task.mean_span=0.5: expected at least 1"),
        (lambda: Denoiser(rate=1.0), "data.task.denoisers.rate=1.0: expected above 0, below 1"),
        (lambda: Denoiser(mean_span=float("nan")), "data.task.denoisers.mean_span=nan"),
        (lambda: Denoiser(weight=-1.0), "data.task.denoisers.weight=-1.0"),
        (lambda: Denoiser(weight=float("nan")), "data.task.denoisers.weight=nan"),
    ],
)
def test_invalid_span_corruption_fields_are_refused(make, words):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_mode_that_leaves_no_room_is_named(sentinel_tokenizer):
    task = UL2(6, denoisers=(Denoiser(mode="w1 w2 w3 w4"),), modes=True)
    with pytest.raises(InputError, match="too short for two tokens, 4 of the mode, a sentinel and the end token"):
        task.check(sentinel_tokenizer, pack=False)
    dataclasses.replace(task, modes=False).check(sentinel_tokenizer, pack=False)


def test_a_single_token_gives_no_example(sentinel_tokenizer):
    assert examples(SpanCorruption(24), sentinel_tokenizer, 1)[1] == []
    assert examples(SpanCorruption(24), sentinel_tokenizer, 0)[1] == []
