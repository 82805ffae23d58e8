"""A stream of sound is divided at pauses, and the sizes of its chunks make no difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.transforms.utterances import Utterances
from jaxformer.errors import InputError

RATE = 1000
DIVIDE = Utterances(pause=0.3, margin=0.1, longest=1.5)


def tone(seconds):
    return 0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.7).astype(np.float32)


def silence(seconds):
    return np.full(round(seconds * RATE), 1e-4, np.float32)


STREAM = np.concatenate([silence(1), tone(0.4), silence(0.2), tone(0.2), silence(1), tone(0.02), silence(1), tone(0.6)])


def test_utterances_have_margins_and_clicks_are_left_out():
    first, last = DIVIDE([STREAM], RATE)
    np.testing.assert_array_equal(
        first, np.concatenate([silence(0.1), tone(0.4), silence(0.2), tone(0.2), silence(0.1)])
    )
    np.testing.assert_array_equal(last, np.concatenate([silence(0.1), tone(0.6)]))


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_chunks_of_any_size_give_the_same(cuts):
    whole = list(DIVIDE([STREAM], RATE))
    parts = list(DIVIDE(np.split(STREAM, sorted(cuts)), RATE))
    assert len(parts) == len(whole)
    for part, one in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part, one)


def test_an_utterance_is_yielded_as_soon_as_its_pause_has_passed():
    read = []

    def chunks():
        for chunk in np.split(STREAM, range(100, len(STREAM), 100)):
            read.append(len(chunk))
            yield chunk

    next(DIVIDE(chunks(), RATE))
    assert sum(read) == 2100  # A pause of 0.3 seconds after 1.8.


def test_long_sounds_are_divided_and_silence_is_nothing():
    parts = list(DIVIDE([tone(4)], RATE))
    assert [len(part) for part in parts] == [1500, 1500, 1000]
    assert list(DIVIDE([silence(4)], RATE)) == [] and list(DIVIDE([], RATE)) == []
    with pytest.raises(InputError, match=r"utterances\.pause=0: expected at least 0\.02"):
        Utterances(pause=0)
