"""Attention in parts and blocks equals attention at once, whatever the length and the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS, case, documents, plain, values_and_gradients

from jaxformer.layers import attention
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.masks import Mask

LENGTHS = (1, 63, 64, 65, 255, 256, 257, 512, 513, 1100)
"""Around the sizes of parts and of blocks."""


def assert_equal(mask, arrays, scale=None):
    """`attend` gives what the formula gives, with its gradients; all in one compiled function."""

    def ours(query, key, value, bias=None):
        return attend(query, KeyValue(key, value), AttendOptions(mask=mask, bias=bias, scale=scale))

    def theirs(query, key, value, bias=None):
        return plain(query, key, value, None if mask is None else mask.dense(), bias, scale)

    run = jax.jit(lambda arrays: [values_and_gradients(function, arrays) for function in (ours, theirs)])
    actual, expected = jax.device_get(run(arrays))
    for name in expected:
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-5 * max(1, size), err_msg=name)
        assert size > 1e-3 or expected[name].size < 64


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_values_and_gradients_are_those_of_the_whole_matrix(length):
    assert_equal(MASKS["causal in segments"](length), case(length, length, heads=4, groups=2))


@pytest.mark.parametrize("length", [511, 512, 513, 1100])
def test_values_and_gradients_are_those_of_the_whole_matrix(length):
    assert_equal(MASKS["segments"](length), case(length, length, heads=4, groups=2))


@pytest.mark.parametrize(("name", "length"), [("everywhere", 513), ("causal", 257), ("prefix", 513)])
def test_other_masks_without_bias(name, length):
    arrays = case(length, length, heads=3, groups=1)
    del arrays["bias"]
    assert_equal(MASKS[name](length), arrays, scale=1.3)


@pytest.mark.parametrize("queries", [3, 530])
def test_keys_may_be_more_or_fewer_than_queries(queries):
    mask = Mask.of_segments(documents(queries), documents(77, seed=1))
    assert_equal(mask, case(queries, 77))


@pytest.mark.slow
@pytest.mark.parametrize("length", [257, 300])
def test_long_parts_of_a_causal_row_go_block_by_block(length, monkeypatch):
    """Parts of 65 and of 75 queries in blocks of at most 24: the last is padded, and each sees its part's keys."""
    monkeypatch.setattr(attention, "BLOCK", 24)
    assert_equal(Mask.causal(length, documents(length, 2)), case(length, length, heads=4, groups=2, rows=2))


@pytest.mark.slow
def test_a_bias_may_differ_from_row_to_row(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 16)
    arrays = case(37, 37, rows=2)
    arrays["bias"] = jnp.stack([arrays["bias"], -arrays["bias"]])
    assert_equal(Mask.of_segments(documents(37, 2), documents(37, 2)), arrays)
    assert_equal(Mask.causal(37), arrays)
