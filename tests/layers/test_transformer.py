"""Blocks from their parts; the stack from its blocks, however it is rolled or recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import assert_trees_close, noisy_params, small_bert

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.masks import segment_mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm, RMSNorm
from jaxformer.layers.transformer import Block, Transformer

X = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
MASK = segment_mask(SEGMENTS, SEGMENTS)
KEY = jax.random.key(3)


def small(**fields) -> Transformer:
    return small_bert(**fields).transformer


def apply(transformer, params, x=X, mask=MASK, **more):
    return transformer.apply({"params": params}, x, mask, **more)


@pytest.mark.parametrize("norm", [LayerNorm(), RMSNorm()], ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_block_is_its_layers_with_residuals_and_norms(position, norm):
    mlp, attention = Mlp(20), Attention(2, dtype="float32")
    block = Block(2, mlp, norm, position, 0.0, 0.0, "float32")
    params = noisy_params(block, X)

    def part(layer, name, *inputs):
        return layer.apply({"params": params[name]}, *inputs)

    def attend(x):
        return part(attention, "attention", x, None, MASK)[0]

    if position == "before":
        x = X + attend(part(norm, "attention_norm", X))
        expected = x + part(mlp, "mlp", part(norm, "mlp_norm", x), "float32")
    else:
        x = part(norm, "attention_norm", X + attend(X))
        expected = part(norm, "mlp_norm", x + part(mlp, "mlp", x, "float32"))
    actual, _ = block.apply({"params": params}, X, MASK)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_stack_is_its_blocks_one_after_the_other():
    transformer = small(depth=3)
    params = noisy_params(transformer, X)
    block = Block(2, Mlp(), LayerNorm(1e-12), "after", 0.0, 0.0, "float32")
    x = X
    for layer in range(3):
        x, _ = block.apply({"params": jax.tree.map(lambda leaf: leaf[layer], params["blocks"])}, x, MASK)  # noqa: B023
    np.testing.assert_allclose(apply(transformer, params)[0], x, atol=1e-5)


def test_layers_begin_different():
    kernels = jax.jit(small().init)(KEY, X)["params"]["blocks"]["mlp"]["up"]["kernel"].value
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@functools.cache
def values_and_gradients(**fields):
    """Output, gradients of parameters and of input, with dropout: whatever is recomputed must drop the same."""
    transformer = small(dropout=0.2, attention_dropout=0.2, **fields)
    params = noisy_params(transformer, X)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            output, _ = transformer.apply({"params": params}, x, MASK, True, rngs={"dropout": KEY})
            return jnp.sum(jnp.sin(output)), output

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (_, output), gradients = run(params, X)
    return {"output": output, "gradients": gradients}


def test_scanned_equals_unrolled():
    assert_trees_close(values_and_gradients(unroll=1), values_and_gradients(unroll=2), 1e-5)


@pytest.mark.parametrize(("remat", "unroll"), [("dots", 1), ("full", 1), ("full", 2)])
def test_what_is_recomputed_changes_nothing(remat, unroll):
    assert_trees_close(values_and_gradients(unroll=unroll, remat=remat), values_and_gradients(unroll=2), 1e-5)


def test_dropout_acts_in_training_only():
    """Evaluated, a model with dropout is the one without; trained, it is not."""
    transformer, plain = small(dropout=0.2, attention_dropout=0.2), small()
    params = noisy_params(plain, X)
    evaluated = apply(plain, params)[0]
    np.testing.assert_array_equal(apply(transformer, params)[0], evaluated)
    assert np.abs(values_and_gradients(unroll=2)["output"] - evaluated).max() > 0.01


def test_remat_saves_memory_as_it_comes():
    """Whole blocks recomputed need less than all but matrix products, and those less than nothing recomputed."""

    def temporaries(remat):
        transformer = small(depth=3, remat=remat)
        x = np.zeros((8, 64, 16), np.float32)
        params = noisy_params(transformer, x)
        gradient = jax.jit(jax.grad(lambda params: transformer.apply({"params": params}, x)[0].sum()))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    full, dots, none = map(temporaries, ("full", "dots", "none"))
    assert full < dots < none


def test_returned_attention_has_a_row_a_query_that_sums_to_one():
    transformer = small(heads=4)
    params = noisy_params(transformer, X)
    output, weights = apply(transformer, params, return_attention=True)
    assert weights.shape == (2, 2, 4, 12, 12)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert not np.where(MASK, 0, weights).any()
    without, nothing = apply(transformer, params)
    assert nothing is None
    np.testing.assert_allclose(without, output, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_output_at_some_positions_is_that_of_all_positions(position, depth):
    transformer = small(norm_position=position, depth=depth)
    params, at = noisy_params(transformer, X), np.array([[0, 7, 3, 3], [11, 2, 0, 5]])
    expected = np.take_along_axis(np.asarray(apply(transformer, params)[0]), at[..., None], 1)
    np.testing.assert_allclose(apply(transformer, params, at=at)[0], expected, atol=1e-5)


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_segments_output_has_no_gradient_in_another_segment(position):
    transformer = small(norm_position=position)
    params = noisy_params(transformer, X)
    influence = jax.jit(jax.grad(lambda x, of: jnp.sum(jnp.sin(apply(transformer, params, x)[0]) * of)))
    for segment in (0, 1, 2):
        inside = np.equal(SEGMENTS, segment)
        gradient = np.asarray(influence(X, inside[..., None]))
        assert not gradient[~inside].any(), "exactly zero"
        assert np.abs(gradient[inside]).max(-1).all(), "every token of the segment counts"


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters():
    transformer = small(dtype="bfloat16")
    params = noisy_params(transformer, X)
    abstract = jax.eval_shape(transformer.init, KEY, jnp.bfloat16(X))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    rough, _ = apply(transformer, params, jnp.bfloat16(X))
    assert rough.dtype == jnp.bfloat16
    exact, _ = apply(small(), params)
    assert 0 < np.abs(np.float32(rough) - exact).max() < 0.15


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "transformer.width=0: expected at least 1"),
        ({"depth": 0}, "transformer.depth=0: expected at least 1"),
        ({"heads": -2}, "transformer.heads=-2: expected at least 1"),
        ({"width": 16, "heads": 5}, "transformer.heads=5 does not divide transformer.width=16: 4 would"),
        ({"width": 12, "heads": 24}, "transformer.heads=24 does not divide transformer.width=12: 12 would"),
        ({"dropout": 1.0}, "transformer.dropout=1.0: expected 0 or more, below 1"),
        ({"dropout": -0.1}, "transformer.dropout=-0.1: expected 0 or more, below 1"),
        ({"attention_dropout": 1.5}, "transformer.attention_dropout=1.5: expected 0 or more, below 1"),
        ({"dropout": float("nan")}, "transformer.dropout=nan: expected 0 or more, below 1"),
        ({"unroll": 0}, "transformer.unroll=0: expected at least 1"),
        ({"unroll": -1}, "transformer.unroll=-1: expected at least 1"),
        ({"mlp": Mlp(64), "norm": LayerNorm(), "depth": -1}, "transformer.depth=-1: expected at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as error:
        Transformer(**fields)
    assert str(error.value) == message


def test_an_impossible_mlp_width_is_refused():
    with pytest.raises(InputError, match=r"mlp\.width=0: expected at least 1"):
        Mlp(0)
