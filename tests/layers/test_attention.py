"""Attention against its formula: the weights, and the layer around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention, AttentionInputs, attention_weights, mix
from jaxformer.layers.cache import KeyValue, LayerCache
from jaxformer.layers.masks import Mask
from jaxformer.layers.norms import HeadRMSNorm
from jaxformer.layers.positions import Placement, Rotary, rotate


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, MEMORY = normal(2, 5, 12), normal(2, 7, 12, seed=1)
SETTINGS = {"heads": 3, "dtype": "float32"}


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def params_of(layer, heads=3):
    return noisy_params(layer, X, heads=heads)


def apply(layer, params, x, memory=None, mask=None, rngs=None, **options):
    """The layer's output, weights and keys; `options` are inputs, or settings of the call."""
    settings = SETTINGS | {name: options.pop(name) for name in ("heads", "dropout", "dtype") if name in options}
    inputs = AttentionInputs(memory=memory, mask=mask, **options)
    output = layer.apply({"params": params}, x, inputs, rngs=rngs, **settings)
    return output.output, output.weights, output.keys if output.cache is None else output.cache.keys


def project(params, name, inputs):
    """Queries, keys or values, [b, t, h, k]."""
    return np.einsum("btd,dhk->bthk", inputs, params[name]["kernel"]) + params[name].get("bias", 0)


def formula(params, x, memory=None, seen=None, scale=0.5):
    """Vaswani's, with keys and values repeated for the heads that share them: the output, and the weights."""
    memory = x if memory is None else memory
    query, key, value = project(params, "query", x), project(params, "key", memory), project(params, "value", memory)
    sharing = query.shape[2] // key.shape[2]
    key, value = np.repeat(key, sharing, axis=2), np.repeat(value, sharing, axis=2)
    scores = np.einsum("bthk,bshk->bhts", query, key) * scale
    weights = softmax(scores if seen is None else np.where(seen, scores, -np.inf))
    mixed = np.einsum("bhts,bshk->bthk", weights, value)
    return np.einsum("bthk,hkd->btd", mixed, params["output"]["kernel"]) + params["output"].get("bias", 0), weights


class TestWeights:
    @pytest.mark.parametrize("masked", [True, False])
    def test_they_are_the_softmax_of_scaled_products(self, masked):
        query, key = normal(2, 5, 3, 4), normal(2, 3, 7, 4, seed=1)
        mask = np.random.default_rng(2).random((2, 1, 5, 7)) < 0.6
        mask[..., 0] = True
        scores = np.einsum("bthk,bhsk->bhts", query, key) / 2
        expected = softmax(np.where(mask, scores, -np.inf) if masked else scores)
        weights = attention_weights(query, key, mask if masked else None)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        if masked:
            hidden = ~np.broadcast_to(mask, weights.shape)
            assert not np.asarray(weights)[hidden].any(), "hidden keys weigh exactly nothing"

    def test_consecutive_heads_share_a_group_of_keys_and_values(self):
        query, key, value = normal(2, 5, 6, 4), normal(2, 2, 7, 4, seed=1), normal(2, 2, 7, 4, seed=2)
        weights = attention_weights(query, key)
        np.testing.assert_allclose(weights, attention_weights(query, np.repeat(key, 3, axis=1)), atol=1e-6)
        expected = mix(weights, jnp.repeat(value, 3, axis=1))
        np.testing.assert_allclose(mix(weights, value), expected, atol=1e-6)
        assert expected.shape == (2, 5, 6, 4)

    @pytest.mark.parametrize("rows", [1, 2])
    def test_a_bias_is_added_to_scores_of_any_scale(self, rows):
        query, key, bias = normal(2, 5, 3, 4), normal(2, 3, 7, 4, seed=1), normal(rows, 3, 5, 7, seed=2)
        expected = softmax(np.einsum("bthk,bhsk->bhts", query, key) * 0.3 + bias)
        bias = bias[0] if rows == 1 else bias
        np.testing.assert_allclose(attention_weights(query, key, None, bias, 0.3), expected, atol=1e-6)

    def test_they_are_float32_and_sum_to_one_in_bfloat16_too(self):
        query = jnp.asarray(normal(1, 64, 2, 8), jnp.bfloat16)
        weights = attention_weights(query, query.swapaxes(1, 2))
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert mix(weights, query.swapaxes(1, 2)).dtype == jnp.bfloat16

    def test_great_scores_do_not_overflow(self):
        query = np.float32(1e4) * normal(1, 6, 1, 4)
        assert np.isfinite(attention_weights(query, query.swapaxes(1, 2))).all()


LAYERS = {
    "plain": (Attention(), 0.5),
    "without biases": (Attention(bias=False), 0.5),
    "without scale": (Attention(scale_scores=False), 1.0),
    "scale of its own": (Attention(query_pre_attn_scalar=16), 0.25),
    "wide heads": (Attention(head_dim=9), 1 / 3),
    "one key head": (Attention(kv_heads=1), 0.5),
    "as many key heads": (Attention(kv_heads=3), 0.5),
}


@pytest.mark.parametrize("memory", [None, MEMORY], ids=["itself", "a memory"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_vaswanis_formula(name, memory):
    layer, scale = LAYERS[name]
    params = params_of(layer)
    queries, keys = np.array([[1, 1, 1, 2, 2]] * 2), np.array([[1, 2, 1, 2, 1, 1, 2]] * 2)
    mask = Mask.of_segments(queries, queries if memory is None else keys)
    expected, weights = formula(params, X, memory, mask.dense(), scale)
    output, nothing, _ = apply(layer, params, X, memory, mask)
    assert nothing is None
    np.testing.assert_allclose(output, expected, atol=1e-5)
    output, returned, _ = apply(layer, params, X, memory, mask, return_weights=True)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(returned, weights, atol=1e-5)


def test_parameters_have_the_shapes_and_biases_that_the_fields_say():
    params = params_of(Attention(kv_heads=2, head_dim=5, bias=False), heads=6)
    shapes = {name: {key: array.shape for key, array in part.items()} for name, part in params.items()}
    kernels = {"query": (12, 6, 5), "key": (12, 2, 5), "value": (12, 2, 5), "output": (6, 5, 12)}
    assert shapes == {name: {"kernel": shape} for name, shape in kernels.items()}
    assert {"bias" in part for part in params_of(Attention()).values()} == {True}


@pytest.mark.slow
def test_grouped_keys_carry_the_letter_of_their_own_axis():
    boxed = Attention(kv_heads=2).init(jax.random.key(0), X, heads=6)["params"]
    assert boxed["query"]["kernel"].letters == "dhk"
    assert boxed["key"]["kernel"].letters == boxed["value"]["kernel"].letters == "dgk"
    assert boxed["output"]["kernel"].letters == "hkd"


def test_queries_without_scale_begin_as_much_smaller():
    def deviation(layer):
        return layer.init(jax.random.key(0), np.zeros((1, 1, 64)), heads=2)["params"]["query"]["kernel"].value.std()

    assert deviation(Attention(scale_scores=False, head_dim=16)) == pytest.approx(deviation(Attention(head_dim=16)) / 4)


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_returned_keys_and_values_can_be_attended_to_again(kv_heads):
    layer = Attention(kv_heads=kv_heads)
    params = params_of(layer)
    expected, _, keys = apply(layer, params, X, MEMORY)
    assert keys.key.shape == keys.value.shape == (2, kv_heads or 3, 7, 4)
    np.testing.assert_allclose(keys.key, project(params, "key", MEMORY).swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(keys.value, project(params, "value", MEMORY).swapaxes(1, 2), atol=1e-5)
    again, _, same = apply(layer, params, X, keys)
    np.testing.assert_allclose(again, expected, atol=1e-6)
    assert same is keys


def test_new_keys_and_values_enter_the_cache_at_their_slot():
    layer = Attention()
    params = params_of(layer)
    cache = KeyValue(normal(2, 3, 9, 4, seed=5), normal(2, 3, 9, 4, seed=6))
    seen = Mask.of_segments(np.ones((2, 5), int), np.array([[1] * 7 + [0] * 2] * 2))
    output, _, keys = apply(layer, params, X, None, seen, cache=LayerCache(cache), used=jnp.int32(2))
    for name, old, new in (("key", cache.key, keys.key), ("value", cache.value, keys.value)):
        written = project(params, name, X).swapaxes(1, 2)
        np.testing.assert_allclose(new, np.concatenate([old[:, :, :2], written, old[:, :, 7:]], 2), atol=1e-5)
    # The first seven slots alone, as keys and values that were there already.
    expected, _, _ = apply(layer, params, X, jax.tree.map(lambda array: array[:, :, :7], keys))
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_cache_keeps_its_type():
    cache = KeyValue(*[jnp.zeros((2, 3, 9, 4), jnp.bfloat16)] * 2)
    layer = Attention()
    _, _, keys = apply(layer, params_of(layer), X, cache=LayerCache(cache), used=0)
    assert keys.key.dtype == keys.value.dtype == jnp.bfloat16


def test_a_placement_rotates_queries_and_keys_and_adds_its_bias():
    layer, heads = Attention(kv_heads=1), 3
    params, bias = params_of(layer), normal(heads, 5, 5, seed=3)
    rotation = Rotary(100.0)(np.arange(5)[None] + 3, None, None, heads, 4).query
    other = tuple(-array for array in rotation)
    _, weights, keys = apply(layer, params, X, placement=Placement(rotation, other, bias), return_weights=True)
    query, key = rotate(project(params, "query", X), rotation), rotate(project(params, "key", X), other)
    np.testing.assert_allclose(keys.key, key.swapaxes(1, 2), atol=1e-5)
    expected = softmax(np.einsum("bthk,bsk->bhts", query, key[:, :, 0]) / 2 + bias)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize("memory", [None, MEMORY], ids=["itself", "memory"])
def test_each_heads_queries_and_keys_are_normalised_and_its_values_not(memory):
    layer = Attention(kv_heads=1, head_norm=HeadRMSNorm(1e-3))
    params = params_of(layer)

    def normed(name, inputs):
        heads = project(params, name, inputs)
        size = np.sqrt(np.square(heads).mean(-1, keepdims=True) + 1e-3)
        return heads / size * params[f"{name}_norm"]["scale"]

    output, weights, keys = apply(layer, params, X, memory, return_weights=True)
    seen = X if memory is None else memory
    query, key = normed("query", X), normed("key", seen)
    np.testing.assert_allclose(np.swapaxes(keys.key, 1, 2), key, atol=1e-5)
    np.testing.assert_allclose(np.swapaxes(keys.value, 1, 2), project(params, "value", seen), atol=1e-5)
    expected = softmax(np.einsum("bthk,bshk->bhts", query, np.repeat(key, 3, axis=2)) / 2)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert output.shape == X.shape


def test_dropout_is_on_the_weights_that_mix_and_not_on_those_returned():
    layer = Attention()
    params = params_of(layer)
    options = {"dropout": 0.5, "return_weights": True}
    output, weights, _ = apply(layer, params, X, train=True, rngs={"dropout": jax.random.key(0)}, **options)
    without, same, _ = apply(layer, params, X, **options)
    np.testing.assert_array_equal(weights, same)
    assert np.abs(output - without).max() > 1e-3


def test_values_decide_nothing_about_the_weights_and_keys_biases_neither():
    """A shift of all keys shifts all of a query's scores alike."""
    layer = Attention()
    params = params_of(layer)
    _, weights, _ = apply(layer, params, X, return_weights=True)
    changed = params | {"value": jax.tree.map(lambda leaf: 3 * leaf, params["value"])}
    changed["key"] = params["key"] | {"bias": params["key"]["bias"] + 1}
    _, same, _ = apply(layer, changed, X, return_weights=True)
    np.testing.assert_allclose(weights, same, atol=1e-6)


def test_a_layer_without_a_bias_of_keys_computes_the_same():
    layer = Attention(key_bias=False)
    params = params_of(Attention())
    without = params | {"key": {"kernel": params["key"]["kernel"]}}
    assert jax.tree.map(jnp.shape, params_of(layer)) == jax.tree.map(jnp.shape, without)
    expected, output = (apply(*of, X)[0] for of in ((Attention(), params), (layer, without)))
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    layer = Attention()
    params = params_of(layer)
    exact, _, _ = apply(layer, params, X)
    rough, _, keys = apply(layer, params, X, dtype="bfloat16")
    assert rough.dtype == keys.key.dtype == keys.value.dtype == jnp.bfloat16
    assert 0 < np.abs(np.float32(rough) - exact).max() < 0.05


@pytest.mark.parametrize("fields", [{"kv_heads": 0}, {"head_dim": 0}, {"kv_heads": -2}], ids=str)
def test_impossible_sizes_are_refused(fields):
    ((name, value),) = fields.items()
    with pytest.raises(InputError, match=f"attention.{name}={value}: expected at least 1"):
        Attention(**fields)
