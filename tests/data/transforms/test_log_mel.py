"""Log-mel spectrograms are those of the transformers library."""

import numpy as np
import pytest
from small_whisper import RATE, sound

from jaxformer.data.transforms.log_mel import SPOKEN, LogMel, mel_filters
from jaxformer.errors import InputError

SOUNDS = {
    "speech-like": sound(2.3),
    "loud": 20 * sound(0.4, 1),
    "quiet": 1e-4 * sound(0.4, 2),
    "noise": np.random.default_rng(0).normal(0, 0.1, 7_001).astype(np.float32),
    "click": np.eye(1, 4000, 1000, dtype=np.float32)[0],
    "silence": np.zeros(3_000, np.float32),
    "shorter than a frame": sound(0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    extract = transformers.WhisperFeatureExtractor(chunk_length=3)
    samples = SOUNDS[name]
    expected = extract(samples, sampling_rate=RATE, return_tensors="np").input_features[0].T
    padded = np.zeros(3 * RATE, np.float32)
    padded[: len(samples)] = samples
    found = LogMel()(padded)
    assert found.dtype == np.float32 and found.shape == (300, 80)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_filters_of_other_numbers_of_bands_are_those_of_transformers():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    for mels in (80, 128):
        expected = audio_utils.mel_filter_bank(201, mels, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
        np.testing.assert_allclose(mel_filters(mels, RATE, 400), expected, atol=1e-12)


def test_parts_of_a_long_sound_are_computed_alike(monkeypatch):
    samples = sound(1.7)
    whole = LogMel()(samples)
    monkeypatch.setattr("jaxformer.data.transforms.log_mel.PART", 13)
    np.testing.assert_allclose(LogMel()(samples), whole, atol=1e-6)
    assert len(whole) == LogMel().frames(1.7) == 170


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_features_for_synthesis_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    samples = SOUNDS[name]
    if len(samples) <= SPOKEN.window // 2:  # transformers cannot mirror it.
        assert SPOKEN(samples).shape == (3, 80)
        return
    extract = transformers.SpeechT5FeatureExtractor()
    (expected,) = extract(audio_target=samples, sampling_rate=RATE, return_tensors="np")["input_values"]
    found = SPOKEN(samples)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert len(found) == SPOKEN.frames(len(samples) / RATE)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_bands_must_have_a_width():
    with pytest.raises(InputError, match=r"lowest=8000\.0: expected 0 or more, below log_mel\.highest=8000\.0"):
        LogMel(lowest=8000.0)
