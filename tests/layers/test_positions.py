"""Sinusoidal positions against the paper's formula."""

import math

import numpy as np
import pytest

from jaxformer.layers.positions import sinusoidal


def test_sines_then_cosines_of_the_papers_angles():
    width, longest, positions = 10, 100.0, [0, 1, 7, 300]
    encoding = sinusoidal(np.array([positions]), width, longest)
    assert encoding.shape == (1, 4, width)
    assert encoding.dtype == np.float32
    for row, position in zip(encoding[0], positions, strict=True):
        angles = [position / longest ** (2 * i / width) for i in range(width // 2)]
        expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_a_shift_is_a_rotation():
    """PE(p + k) is a linear function of PE(p), the same for every p: the paper's reason for this encoding."""
    width, shift = 8, 5
    angles = shift * 10_000.0 ** (-np.arange(0, width, 2) / width)
    positions = np.arange(40)
    sines, cosines = np.split(np.asarray(sinusoidal(positions, width)), 2, axis=-1)
    turned = np.concatenate(
        [sines * np.cos(angles) + cosines * np.sin(angles), cosines * np.cos(angles) - sines * np.sin(angles)], -1
    )
    np.testing.assert_allclose(sinusoidal(positions + shift, width), turned, atol=1e-5)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width 7 is odd"):
        sinusoidal(np.arange(3), 7)
