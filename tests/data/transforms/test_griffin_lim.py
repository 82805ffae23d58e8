"""Griffin–Lim makes sounds whose log-mel spectrograms are the given ones."""

import numpy as np
import pytest
from small_whisper import RATE, sound

from jaxformer.data.transforms.griffin_lim import griffin_lim
from jaxformer.data.transforms.log_mel import SPOKEN, LogMel

SAMPLES = sound(0.8)


@pytest.mark.parametrize("settings", [SPOKEN, LogMel()], ids=["synthesis", "recognition"])
def test_a_sound_has_the_spectrogram_that_it_is_made_from(settings):
    log_mel = settings(SAMPLES)
    made = griffin_lim(log_mel, settings)
    assert made.dtype == np.float32 and len(made) == (len(log_mel) - 1) * settings.hop
    again = settings(made)[: len(log_mel) - 2]
    loud = log_mel[: len(again)] > log_mel.max() - (2 if settings is SPOKEN else 0.5)
    apart = np.abs(again - log_mel[: len(again)])[loud].mean()
    at_random = np.abs(settings(griffin_lim(log_mel, settings, iterations=0))[: len(again)] - log_mel[: len(again)])
    assert apart < 0.5 * at_random[loud].mean()


def test_a_sound_depends_on_its_seed_alone():
    log_mel = SPOKEN(SAMPLES)
    one, again, other = (griffin_lim(log_mel, SPOKEN, 2, seed) for seed in (0, 0, 1))
    assert (one == again).all() and np.abs(one - other).max() > 0.01


def test_the_amplitudes_have_the_mel_bands_of_the_spectrogram():
    log_mel = SPOKEN(SAMPLES)
    bands = SPOKEN.spectrum(log_mel) @ SPOKEN.filters
    loud = log_mel > log_mel.max() - 2
    apart = np.abs(np.log10(bands) - log_mel)[loud]
    assert apart.mean() < 0.01 and np.quantile(apart, 0.99) < 0.05


@pytest.mark.parametrize("frames", [0, 1])
def test_less_than_two_frames_give_no_samples(frames):
    assert len(griffin_lim(np.zeros((frames, 80)), SPOKEN)) == 0


def test_a_tone_keeps_its_frequency():
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    made = griffin_lim(SPOKEN(tone), SPOKEN)
    spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made))))
    assert abs(spectrum.argmax() * RATE / len(made) - 440) < 25
