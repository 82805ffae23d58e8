"""Attention against its formula, and what its masks hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.layers.attention import Attention, attention_weights
from jaxformer.layers.masks import causal_mask, segment_mask


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("masked", [True, False])
def test_weights_are_the_softmax_of_scaled_products(masked):
    query, key = normal(2, 5, 3, 4), normal(2, 7, 3, 4, seed=1)
    mask = np.random.default_rng(2).random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    scores = np.einsum("bthk,bshk->bhts", query, key) / 2
    expected = softmax(np.where(mask, scores, -np.inf) if masked else scores)
    weights = attention_weights(query, key, mask if masked else None)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    if masked:
        assert not np.asarray(weights)[~np.broadcast_to(mask, weights.shape)].any(), "hidden keys weigh exactly nothing"


def test_weights_are_float32_and_sum_to_one_in_bfloat16_too():
    query = jnp.asarray(normal(1, 64, 2, 8), jnp.bfloat16)
    weights = attention_weights(query, query, None)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_great_scores_do_not_overflow():
    query = np.float32(1e4) * normal(1, 6, 1, 4)
    assert np.isfinite(attention_weights(query, query, None)).all()


@pytest.mark.parametrize("memory_length", [None, 7])
def test_the_layer_is_vaswanis_formula(memory_length):
    x = normal(2, 5, 12)
    memory = None if memory_length is None else normal(2, memory_length, 12, seed=1)
    layer = Attention(heads=3, dtype="float32")
    params = noisy_params(layer, x)
    output, weights = layer.apply({"params": params}, x, memory)

    def project(name, inputs):
        return np.einsum("btd,dhk->bthk", inputs, params[name]["kernel"]) + params[name]["bias"]

    source = x if memory is None else memory
    query, key, value = project("query", x), project("key", source), project("value", source)
    expected = softmax(np.einsum("bthk,bshk->bhts", query, key) / 2)
    mixed = np.einsum("bhts,bshk->bthk", expected, value)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(
        output, np.einsum("bthk,hkd->btd", mixed, params["output"]["kernel"]) + params["output"]["bias"], atol=1e-5
    )


def test_dropout_is_on_the_weights_that_mix_and_not_on_those_returned():
    x = normal(1, 16, 8)
    layer = Attention(heads=2, dropout=0.5, dtype="float32")
    params = noisy_params(layer, x)
    output, weights = layer.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})
    without, same = layer.apply({"params": params}, x)
    np.testing.assert_array_equal(weights, same)
    assert np.abs(output - without).max() > 1e-3


def test_segments_see_themselves_only_and_padding_stays_apart():
    segments = np.array([[1, 1, 2, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    mask = segment_mask(segments, segments)
    assert mask.shape == (1, 1, 4, 4)
    np.testing.assert_array_equal(mask[0, 0], np.array(expected, bool))


def test_a_causal_query_sees_its_own_position_and_the_past():
    queries, keys = np.array([[3, 4]]), np.array([[2, 3, 4, 5]])
    np.testing.assert_array_equal(
        causal_mask(queries, keys)[0, 0], np.array([[True, True, False, False], [True, True, True, False]])
    )
