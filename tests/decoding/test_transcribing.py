"""Windows of a transcription: segments, plausibility, and times of words."""

import dataclasses

import numpy as np
import pytest
from small_whisper import tokenizer_json

from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.speech_tokens import SpeechTokens
from jaxformer.decoding.alignment import align, dynamic_time_warping, split_words
from jaxformer.decoding.transcribing import (
    Transcribing,
    attempt_of,
    compression_ratio,
    previous_prompt,
    split_at_timestamps,
)
from jaxformer.errors import InputError

TOKENIZER = ByteLevelTokenizer(tokenizer_json())
SPECIAL = SpeechTokens.of(TOKENIZER)
T = SPECIAL.first_timestamp


def spans(tokens, frames=3000):
    found, advance = split_at_timestamps(tokens, SPECIAL, frames)
    return [(round(one.start, 2), round(one.end, 2), len(one.tokens)) for one in found], advance


def test_pairs_of_timestamps_divide_a_window():
    assert spans([T, 5, 6, T + 50, T + 60, 7, T + 100, T + 100]) == ([(0, 1, 4), (1.2, 2, 3)], 200)
    # The words after the last pair are heard again in the next window.
    assert spans([T, 5, T + 50, T + 50, 6]) == ([(0, 1, 3)], 100)
    assert spans([T, 5, T + 90, T + 110, 6, T + 120], 200)[0] == [(0, 1.8, 3), (2, 2, 3)]
    # A single timestamp at the end: nothing is said after it.
    assert spans([T, 5, T + 50, T + 60, 7, T + 100]) == ([(0, 1, 3), (1.2, 2, 3)], 3000)


def test_windows_without_pairs_are_one_segment():
    assert spans([5, 6], 250) == ([(0, 2.5, 2)], 250)
    assert spans([T, 5, T + 40], 250) == ([(0, 0.8, 3)], 250)
    assert spans([T, 5], 250) == ([(0, 2.5, 2)], 250)
    assert spans([], 100) == ([(0, 1, 0)], 100)


def test_the_next_window_always_starts_later():
    assert spans([T, T, T], 700)[1] == 700
    assert spans([T, 5, T + 90, T + 90], 100)[1] == 100


def attempt(probability=-0.2, text="some words", no_speech=0.0):
    return attempt_of([1, 2, 3], 4 * probability, text, 0.0, no_speech)


def test_outputs_that_are_not_plausible_are_decoded_again():
    settings = Transcribing()
    assert not settings.retries(attempt()) and settings.retries(attempt(-1.1))
    assert settings.retries(attempt(text="again and " * 30)) and compression_ratio("again and " * 30) > 2.4
    assert attempt(-0.5).mean_log_probability == -0.5
    # Silence is skipped, and not decoded again.
    quiet = attempt(-1.1, no_speech=0.7)
    assert settings.is_silent(quiet) and not settings.retries(quiet)
    assert not settings.is_silent(attempt(no_speech=0.7))
    without = dataclasses.replace(settings, no_speech=None, log_probability=None, compression_ratio=None)
    assert not without.retries(attempt(-5, "again and " * 30)) and not without.is_silent(quiet)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"temperatures=\(\): expected one or more"):
        Transcribing(temperatures=())
    with pytest.raises(InputError, match="no_speech=2: expected"):
        Transcribing(no_speech=2)


def test_the_text_before_a_window_is_shortened():
    assert previous_prompt([], SPECIAL, 16) == []
    assert previous_prompt(range(9), SPECIAL, 16) == [SPECIAL.previous, *range(2, 9)]
    assert previous_prompt([1], dataclasses.replace(SPECIAL, previous=None), 16) == []


def test_paths_are_those_of_transformers():
    module = pytest.importorskip("transformers.models.whisper.generation_whisper")
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 7), (5, 1), (4, 9), (9, 4), (12, 30)):
        costs = rng.normal(size=(rows, columns))
        expected = module._dynamic_time_warping(costs)
        for mine, theirs in zip(dynamic_time_warping(costs), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_words_begin_with_spaces():
    tokens = TOKENIZER.encode(" hello there, how are naïve “you”?")
    words = split_words(tokens, TOKENIZER.decode)
    assert [text for text, _ in words] == [" hello", " there,", " how", " are", " naïve", " “you”?"]
    assert [token for _, part in words for token in part] == tokens.tolist()
    characters = split_words(TOKENIZER.encode("你好。"), TOKENIZER.decode, "zh")
    assert [text for text, _ in characters] == ["你", "好。"]


def test_words_are_said_when_attention_reaches_them():
    """Three words of one and two tokens, whose weights are around the positions 10, 30, 50 and 70."""
    words = [(" a", [1]), (" bc", [2, 3]), (" d", [4])]
    peaks = (0, 10, 30, 50, 70, 99)  # Of the prefix, four tokens and the end token.

    def weights(tokens):
        assert tokens.tolist() == [SPECIAL.start, 1, 2, 3, 4, SPECIAL.end]
        near = np.exp(-0.5 * ((np.arange(120) - np.array(peaks)[:, None]) / 5) ** 2) + 1e-3
        return np.stack([near, near]) / near.sum(1, keepdims=True)

    timed = align(weights, [SPECIAL.start], words, SPECIAL.end, 100)
    assert [word.text for word in timed] == [" a", " bc", " d"]
    assert timed[0].start == 0 and timed[-1].end <= 2.0
    assert 0.3 < timed[0].end == timed[1].start < 0.5 and 1.1 < timed[1].end == timed[2].start < 1.3
    assert align(weights, [SPECIAL.start], [], SPECIAL.end, 100) == []
