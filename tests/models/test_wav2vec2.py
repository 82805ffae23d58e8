"""Encoders of waveforms: padding, masks and settings that do not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from small_speech import CTC, FRAMING, noisy, waveform

from jaxformer.errors import InputError
from jaxformer.layers.waveforms import ConvolutionalPositions

SAMPLES = np.stack([waveform(0.04, seed) for seed in (1, 2)])
SHORT = 400
MASK = np.ones(SAMPLES.shape, np.uint8)
MASK[1, SHORT:] = 0


@pytest.fixture(scope="module")
def params():
    return noisy(CTC)


def logits(model, params, *arrays):
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, *arrays).logits)(params))


def test_padding_has_no_effect_if_norms_leave_it_out(params):
    model = dataclasses.replace(CTC, masked_statistics=True)
    frames = FRAMING.frames(SHORT)
    alone = logits(CTC, params, SAMPLES[1:, :SHORT])
    padded = logits(model, params, SAMPLES * MASK, MASK)
    np.testing.assert_allclose(padded[1, :frames], alone[0], atol=1e-5)
    other = SAMPLES.copy()
    other[1, SHORT:] = 5.0
    np.testing.assert_allclose(logits(model, params, other, MASK)[1, :frames], alone[0], atol=1e-5)
    # The norm over time of transformers includes the padding.
    assert np.abs(logits(CTC, params, SAMPLES * MASK, MASK)[1, :frames] - alone[0]).max() > 1e-3


def test_masked_frames_have_no_samples(params):
    frames = FRAMING.frames(SAMPLES.shape[1])
    masked = np.zeros((2, frames), np.uint8)
    masked[0] = 1
    found = logits(CTC, params, SAMPLES, None, masked)
    other = logits(CTC, params, SAMPLES[::-1].copy(), None, masked)
    np.testing.assert_allclose(found[0], other[0], atol=1e-5)
    assert np.abs(found[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("taps", [4, 5])
def test_positions_are_a_grouped_convolution_of_a_normalized_kernel(taps):
    rng = np.random.default_rng(0)
    x, layer = rng.normal(size=(2, 7, 6)).astype(np.float32), ConvolutionalPositions(taps, 3, "relu")
    kernel, scale, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((taps, 2, 6), (taps,), (6,)))
    found = jax.jit(layer.apply)({"params": {"kernel": kernel, "scale": scale, "bias": bias}}, x)
    weights = kernel * (scale / np.sqrt((kernel**2).sum((1, 2))))[:, None, None]
    padded, expected = np.pad(x, [(0, 0), (taps // 2, taps // 2), (0, 0)]), np.zeros((2, 7, 6))
    for output in range(6):
        some = padded[:, :, output // 2 * 2 : output // 2 * 2 + 2]
        for place in range(7):
            expected[:, place, output] = (some[:, place : place + taps] * weights[:, :, output]).sum((1, 2))
    np.testing.assert_allclose(found, np.maximum(0, expected + bias), atol=1e-5)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"widths": (8, 8)}, r"model\.widths=\(8, 8\): expected one number per convolution"),
        ({"position_groups": 3}, r"model\.position_groups=3 does not divide the width 16"),
        ({"position_taps": 0}, r"model\.position_taps=0: expected at least 1"),
        ({"feature_dropout": 1.0}, r"model\.feature_dropout=1\.0: expected 0 or more, below 1"),
        ({"blank": 9}, r"model\.blank=9: expected an id below model\.vocab=9"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(CTC, **fields)


def test_a_waveform_shorter_than_a_frame_is_refused(params):
    with pytest.raises(ValueError, match="waveforms are too short"):
        logits(CTC, params, SAMPLES[:, :20])
