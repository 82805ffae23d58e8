"""Dropout: its rate, its scale, its bits, and that a key decides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.layers.dropout import Dropout, keep_mask

KEY = jax.random.key(7)
COUNT = 1 << 18
SIGMAS = 5  # One correct run in a million is beyond.

rates = st.floats(1e-3, 0.99)


def drop(x, rate, key=KEY):
    return Dropout(rate).apply({}, x, train=True, rngs={"dropout": key})


@settings(max_examples=10)
@given(rates)
def test_the_share_that_stays_is_the_probability_that_it_names(rate):
    keep, probability = keep_mask(KEY, rate, (COUNT,))
    deviation = (probability * (1 - probability) / COUNT) ** 0.5
    assert abs(float(keep.mean()) - probability) < SIGMAS * deviation


@given(st.floats(0, 1, exclude_max=True))
def test_the_rate_is_rounded_by_less_than_two_percent_or_to_16_bits(rate):
    _, probability = keep_mask(KEY, rate, (1,))
    assert 0 < probability <= 1
    assert abs(1 - probability - rate) <= max(0.02 * rate, 2**-16)


@settings(max_examples=10)
@given(rates)
def test_the_mean_is_unbiased(rate):
    dropped = drop(jnp.ones(COUNT), rate)
    # The variance of a kept-and-scaled one is (1 - p) / p, at the rate that rounding gave.
    _, probability = keep_mask(KEY, rate, (1,))
    assert abs(float(dropped.mean()) - 1) < SIGMAS * ((1 - probability) / probability / COUNT) ** 0.5


@pytest.mark.parametrize(("rate", "levels"), [(0.1, 2**8), (0.5, 2**8), (0.15, 2**8), (0.01, 2**16), (0.001, 2**16)])
def test_eight_bits_where_they_are_fine_enough_else_sixteen(rate, levels):
    _, probability = keep_mask(KEY, rate, (1,))
    assert probability == 1 - round(rate * levels) / levels
    if levels > 2**8:
        assert probability != 1 - round(rate * 2**8) / 2**8


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_elements_that_share_a_random_word_are_independent(rate):
    keep, probability = keep_mask(KEY, rate, (COUNT,))
    values = (np.asarray(keep) - probability) / (probability * (1 - probability)) ** 0.5
    for distance in (1, 2, 3):
        assert abs(np.mean(values[distance:] * values[:-distance])) < SIGMAS * COUNT**-0.5


@pytest.mark.slow
@settings(max_examples=10)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
def test_any_shape(shape):
    keep, _ = keep_mask(KEY, 0.3, shape)
    assert keep.shape == shape
    assert keep.dtype == bool


def test_kept_elements_are_scaled_and_the_others_zero():
    x = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    keep, probability = keep_mask(KEY, 0.3, x.shape)
    dropped = Dropout(0.3)
    y = dropped.apply({}, x, train=True, rngs={"dropout": KEY})
    kept = np.asarray(y) != 0
    assert abs(kept.mean() - probability) < 0.05
    np.testing.assert_allclose(np.asarray(y)[kept], x[kept] / probability, rtol=1e-6)
    assert keep.any()


def test_the_gradient_goes_where_the_value_went():
    x = jnp.ones((16, 16))
    y, pull = jax.vjp(lambda x: drop(x, 0.4), x)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], y)


def test_a_key_decides_the_mask():
    x = jnp.ones((32, 32))
    np.testing.assert_array_equal(drop(x, 0.2), jax.jit(lambda x: drop(x, 0.2))(x))
    assert (drop(x, 0.2) != drop(x, 0.2, jax.random.key(8))).any()


def test_evaluation_and_rate_zero_change_nothing():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_bfloat16_stays_bfloat16():
    assert drop(jnp.ones((8, 8), jnp.bfloat16), 0.1).dtype == jnp.bfloat16
