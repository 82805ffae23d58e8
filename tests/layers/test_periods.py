"""Stacks whose blocks take turns: windows, positions and parameters of their own, and what a stack returns of each."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import applied, noisy_params
from small_bert import small_transformer as small

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention, AttentionInputs
from jaxformer.layers.block import Block, BlockInputs
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import Placement, RelativePositions, Rotary
from jaxformer.layers.stack import unstacked
from jaxformer.layers.transformer import Variant
from jaxformer.metrics.means import Mean

X = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
SEGMENTS = np.array([[1] * 7 + [2] * 5, [1] * 10 + [0] * 2])
LOCAL = Variant(attention=Attention(window=3), position_embedding=Rotary(50.0))
FIELDS = {"position_embedding": Rotary(100.0), "norm_position": "before"}


class CountingMlp(nn.Module):
    """An MLP with other parameters than `Mlp`, which returns an auxiliary mean."""

    @nn.compact
    def __call__(self, x, dtype="auto", train=False, tokens=None):
        y = Linear("btd,df->btf", (16, 16), dtype=dtype, name="only")(x)
        return jnp.tanh(y), {"load": Mean(jnp.sum(jnp.abs(y)), jnp.asarray(float(y.size)))}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_window_limits_what_attention_sees(window, causal):
    index = np.arange(12)
    seen = np.abs(index[:, None] - index) < window
    seen &= (index[:, None] >= index) if causal else True
    mask = Mask.causal(12, SEGMENTS) if causal else Mask.of_segments(SEGMENTS, SEGMENTS)
    dense = seen[None, None] & (SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :])
    np.testing.assert_array_equal(mask.windowed(window, 12).dense(), dense)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_windowed_attention_in_parts_equals_dense(causal):
    """400 tokens: more than one part, and more than one block of queries in each."""
    x = np.random.default_rng(1).normal(size=(1, 400, 16)).astype(np.float32)
    stack = small(depth=1, attention=Attention(window=70), norm_position="before")
    params = noisy_params(stack, x)
    inputs = BlockInputs(mask=Mask.causal(400) if causal else None)
    parts = applied(stack, params, x, inputs)
    whole = applied(stack, params, x, inputs.replace(return_attention=True))
    np.testing.assert_allclose(parts.hidden, whole.hidden, atol=1e-5)
    index = np.arange(400)
    near = np.abs(index[:, None] - index) < 70
    assert not np.asarray(whole.attention)[..., ~near].any()


@functools.partial(jax.jit, static_argnums=0)
def by_hand(stack, params, x, mask):
    """The blocks one after the other, each built alone."""
    for number, own in enumerate(unstacked(params["blocks"])):
        variant = stack.period[number % len(stack.period)]
        block = Block(
            2,
            variant.attention or stack.attention,
            variant.mlp or stack.mlp,
            stack.norm,
            stack.norm_position,
            0.0,
            0.0,
            "float32",
        )
        scheme = variant.position_embedding or stack.position_embedding
        index = jnp.arange(x.shape[1])
        placement = scheme(index[None], index, index, 2, 8)
        x = block.apply({"params": own}, x, BlockInputs(mask=mask, placement=placement)).hidden
    return stack.norm.apply({"params": params["norm"]}, x)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, 5])
@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("mlp", [None, CountingMlp()], ids=["alike", "other parameters"])
def test_period_runs_each_kind_in_turn(depth, mlp, unroll):
    stack = small(depth=depth, period=(Variant(), Variant(LOCAL.attention, mlp, Rotary(50.0))), unroll=unroll, **FIELDS)
    params, mask = noisy_params(stack, X), Mask.causal(12, SEGMENTS)
    if mlp is None:
        assert set(params["blocks"]) == {"attention", "attention_norm", "mlp", "mlp_norm"}
    output = applied(stack, params, X, BlockInputs(mask=mask))
    np.testing.assert_allclose(output.hidden, by_hand(stack, params, X, mask), atol=2e-5)
    at = np.array([[0, 11, 4], [9, 9, 2]])
    some = applied(stack, params, X, BlockInputs(mask=mask, at=at)).hidden
    np.testing.assert_allclose(some, np.take_along_axis(np.asarray(output.hidden), at[..., None], 1), atol=2e-5)


@pytest.mark.slow
def test_remat_of_a_period_changes_nothing():
    def gradient(**fields):
        stack = small(depth=5, period=(Variant(), LOCAL), **FIELDS, **fields)
        params = noisy_params(stack, X)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(applied(stack, params, X).hidden))))(params)

    plain, recomputed = gradient(), gradient(remat="full", unroll=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, recomputed)


@pytest.mark.slow
def test_auxiliary_means_of_all_blocks_are_added():
    some = small(depth=3, period=(Variant(mlp=CountingMlp()), Variant()), **FIELDS)
    assert applied(some, noisy_params(some, X), X).means["load"].weight == 2 * X.size
    every = small(depth=3, mlp=CountingMlp(), **FIELDS)
    params = noisy_params(every, X)
    means = applied(every, params, X).means
    assert means["load"].weight == 3 * X.size
    at = applied(every, params, X, BlockInputs(at=np.array([[0, 1], [2, 3]]))).means
    assert at["load"].weight == 2 * X.size + 2 * 2 * 16


@pytest.mark.slow
def test_output_of_every_layer_is_returned_where_it_is_asked_for():
    stack = small(depth=3, norm_position="after")
    params = noisy_params(stack, X)
    output = applied(stack, params, X, BlockInputs(return_layers=True))
    assert output.layers.shape == (3, 2, 12, 16)
    np.testing.assert_array_equal(output.layers[-1], output.hidden)
    first = small(depth=1, norm_position="after")
    one = applied(first, {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}, X)
    np.testing.assert_allclose(output.layers[0], one.hidden, atol=1e-6)


def test_norms_on_both_sides_of_each_layer():
    stack = small(depth=1, norm_position="both", norm=LayerNorm())
    params = noisy_params(stack, X)
    own = jax.tree.map(lambda leaf: leaf[0], params["blocks"])

    def norm(name, x):
        return LayerNorm().apply({"params": own[name]}, x)

    attention = Attention().apply({"params": own["attention"]}, norm("attention_norm", X), heads=2).output
    x = X + norm("attention_post_norm", attention)
    x = x + norm("mlp_post_norm", Mlp().apply({"params": own["mlp"]}, norm("mlp_norm", x))[0])
    expected = LayerNorm().apply({"params": params["norm"]}, x)
    np.testing.assert_allclose(applied(stack, params, X).hidden, expected, atol=1e-5)


def test_first_block_can_read_its_input_without_a_norm():
    stack = small(depth=2, first_norm=False, norm_position="before")
    params = noisy_params(stack, X)
    params["blocks"]["attention_norm"]["scale"] = params["blocks"]["attention_norm"]["scale"].at[0].set(np.nan)
    assert np.isfinite(applied(stack, params, X).hidden).all()
    params["blocks"]["attention_norm"]["scale"] = params["blocks"]["attention_norm"]["scale"].at[1].set(np.nan)
    assert np.isnan(applied(stack, params, X).hidden).all()


def test_added_positions_reach_queries_and_keys_and_no_values():
    layer, memory = Attention(), X[:, :5]
    params = noisy_params(layer, X, heads=2)
    query, key = np.ones((1, 12, 16), np.float32), 2 * np.ones((1, 5, 16), np.float32)
    placement = Placement(query_added=query, key_added=key)
    actual = layer.apply({"params": params}, X, AttentionInputs(memory=memory, placement=placement), heads=2)
    plain = layer.apply({"params": params}, X + query, AttentionInputs(memory=memory + key), heads=2)
    values = layer.apply({"params": params}, X, AttentionInputs(memory=memory), heads=2).keys.value
    np.testing.assert_allclose(actual.keys.key, plain.keys.key, atol=1e-6)
    np.testing.assert_allclose(actual.keys.value, values, atol=1e-6)


def decode(stack, params, chunks, room):
    """The hidden vectors of a prompt and of the tokens after it, a chunk at a time."""
    rows, length = X.shape[0], chunks[0]
    cache = stack.new_cache(rows, length).replace(segments=jnp.ones((rows, length), jnp.int32))
    outputs, start = [], 0
    for number, count in enumerate(chunks):
        output = applied(stack, params, X[:, start : start + count], BlockInputs(), cache)
        outputs.append(output.hidden)
        cache, start = output.cache, start + count
        if number == 0:
            cache = cache.room_for(room)
            cache = cache.replace(segments=cache.segments.at[:, length:].set(1))
    return jnp.concatenate(outputs, axis=1), cache


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [[2, *[1] * 10], [6, *[1] * 6], [1, 4, 1, 6], [5, 2, 2, 3]], ids=str)
def test_decoding_with_a_window_sized_cache_is_the_full_pass(chunks):
    stack = small(depth=5, period=(LOCAL, LOCAL, Variant()), **FIELDS)
    params = noisy_params(stack, X)
    expected = applied(stack, params, X, BlockInputs(mask=Mask.causal(12))).hidden
    actual, cache = decode(stack, params, chunks, 12 - chunks[0])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert [layer.keys.key.shape[2] for layer in cache.layers] == [3, 3, 12, 3, 3]


@pytest.mark.slow
def test_positions_with_parameters_belong_to_the_whole_stack():
    with pytest.raises(InputError, match=r"transformer.period: position_embedding=RelativePositions has parameters"):
        small(period=(Variant(position_embedding=RelativePositions()),))
