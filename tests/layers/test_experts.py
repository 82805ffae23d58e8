"""Experts against plain NumPy: routes, weights, losses, what is dropped, and what padding is spared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import assert_trees_close, noisy_params, small_transformer

from jaxformer.errors import InputError
from jaxformer.layers import dispatch, grouped
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.experts import ExpertMlp
from jaxformer.layers.masks import Mask, Tokens
from jaxformer.layers.mlp import activation
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.flops import stack_flops
from jaxformer.models.gpt import Gpt

RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (3, 7, 6)).astype(np.float32)
REAL = np.arange(7) < np.array([[7], [4], [0]])
MLP = ExpertMlp(experts=4, top_k=2, width=5)


def apply(mlp, params, x=X, tokens=None, train=True):
    return jax.jit(lambda params, x: mlp.apply({"params": params}, x, "float32", train, tokens))(params, x)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def expected(mlp, params, x=X, real=None):
    """The output, probabilities [b, t, e] and choices [b, t, k], token by token."""
    params = jax.tree.map(np.asarray, params)
    probabilities = softmax(x @ params["router"]["kernel"])
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[..., : mlp.top_k]
    y, function = np.zeros_like(x), activation(mlp.activation)
    for b, t in np.ndindex(x.shape[:2]):
        if real is not None and not real[b, t]:
            continue
        some = chosen[b, t]
        weights = probabilities[b, t, some]
        weights = weights / weights.sum() if mlp.normalize else weights
        for expert, weight in zip(some, weights, strict=True):
            up = x[b, t] @ params["up"]["kernel"][expert]
            if mlp.gated:
                hidden = np.asarray(function(x[b, t] @ params["gate"]["kernel"][expert])) * up
            else:
                hidden = np.asarray(function(up))
            y[b, t] += weight * (hidden @ params["down"]["kernel"][expert])
    return y, probabilities, chosen


@pytest.mark.parametrize(
    "fields",
    [{}, {"normalize": False}, {"top_k": 1, "normalize": False}, {"gated": False, "activation": "relu"}, {"top_k": 4}],
    ids=str,
)
def test_output_is_the_weighted_sum_of_the_chosen_experts(fields):
    mlp = dataclasses.replace(MLP, **fields)
    params = noisy_params(mlp, X)
    params["router"]["kernel"] *= 10
    np.testing.assert_allclose(apply(mlp, params)[0], expected(mlp, params)[0], atol=1e-5)
    padded, _ = apply(mlp, params, tokens=Tokens(REAL))
    np.testing.assert_allclose(padded, expected(mlp, params, real=REAL)[0], atol=1e-5)


def test_losses_and_load_are_of_the_tokens_alone():
    params = noisy_params(MLP, X)
    params["router"]["kernel"] *= 10
    _, probabilities, chosen = expected(MLP, params)
    _, means = apply(MLP, params, tokens=Tokens(REAL))
    logits = (X @ params["router"]["kernel"])[REAL]
    load = (chosen[REAL][..., None] == np.arange(4)).sum(1).mean(0)
    balance = 4 * (load * probabilities[REAL].mean(0)).sum()
    z = np.square(np.log(np.exp(logits).sum(-1))).mean()
    assert float(means["load_balance"].value) == pytest.approx(0.01 * balance, rel=1e-5)
    assert float(means["router_z"].value) == pytest.approx(0.001 * z, rel=1e-5)
    assert float(means["reported/largest_expert_load"].value) == pytest.approx(load.max() / 2, rel=1e-6)
    assert {float(mean.weight) for mean in means.values()} == {11.0}
    even = apply(MLP, jax.tree.map(jnp.zeros_like, params))[1]
    assert float(even["load_balance"].value) == pytest.approx(0.02), "k / e of the choices by 1 / e of the probability"
    silent = dataclasses.replace(MLP, balance_weight=0.0, z_weight=0.0)
    assert list(apply(silent, params)[1]) == ["reported/largest_expert_load"]


def test_a_row_without_tokens_and_experts_without_tokens_change_nothing():
    params = noisy_params(MLP, X)
    params["router"]["kernel"] = jnp.zeros((6, 4)).at[:, 2].set(5).at[:, 1].set(4)  # Two experts have all of them.
    x = np.abs(X)
    np.testing.assert_allclose(apply(MLP, params, x)[0], expected(MLP, params, x)[0], atol=1e-5)
    y, means = apply(MLP, params, tokens=Tokens(np.zeros((3, 7), bool)))
    assert not np.any(y) and all(float(mean.value) == 0 for mean in means.values())


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"gated": False, "top_k": 3}, {"capacity": 9.0}], ids=str)
def test_gradients_are_those_of_all_experts_computed_for_every_token(fields, monkeypatch):
    mlp = dataclasses.replace(MLP, **fields)
    params = noisy_params(mlp, X)

    def gradients():
        def loss(params, x):
            y, means = mlp.apply({"params": params}, x, "float32", True, Tokens(REAL))
            return jnp.sum(jnp.sin(y) * y) + sum(mean.value for mean in means.values())

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, X)

    ours = gradients()
    monkeypatch.setattr(dispatch, "dropless", dispatch.dense)
    monkeypatch.setattr(dispatch, "limited", lambda *given: (dispatch.dense(*given[:3]), 0.0))
    wanted = gradients()
    for one, other in zip(ours, wanted, strict=True):
        assert_trees_close({"": one}, {"": other}, 1e-5)


@pytest.mark.slow
def test_capacity_drops_later_and_second_choices_of_a_row_first():
    mlp = ExpertMlp(experts=2, top_k=2, width=5, capacity=0.5, normalize=False)
    params, x = noisy_params(mlp, X), np.abs(X)
    params["router"]["kernel"] = jnp.ones((6, 2)).at[:, 1].set(0)  # All choose expert 0 first, and 1 second.
    tokens = Tokens(REAL, np.broadcast_to([0, 0, 2, 3, 4, 5, 6], (3, 7)))
    y, means = apply(mlp, params, x, tokens)
    kept = apply(dataclasses.replace(mlp, capacity=None), params, x, tokens)[0]
    slots = 4  # ⌈0.5 · 7 · 2 / 2⌉; the repeated token waits for the others.
    assert np.all(np.abs(y[0, [0, 2, 3, 4]]).sum(-1) > 0)
    np.testing.assert_allclose(y[0, [0, 2, 3, 4]], kept[0, [0, 2, 3, 4]], atol=1e-6)
    assert not np.any(y[0, [1, 5, 6]])
    np.testing.assert_allclose(y[1], kept[1], atol=1e-6)
    dropped = means["reported/dropped_tokens"]
    assert float(dropped.sum) == 6 - slots and float(dropped.weight) == 6 + 3
    evaluated, means = apply(mlp, params, x, tokens, train=False)
    np.testing.assert_allclose(evaluated, kept, atol=1e-6)
    assert "reported/dropped_tokens" not in means, "nothing is dropped outside of training"


@pytest.mark.slow
def test_what_a_row_drops_does_not_depend_on_other_rows():
    mlp = dataclasses.replace(MLP, capacity=0.8)
    params = noisy_params(mlp, X)
    together, means = apply(mlp, params)
    assert float(means["reported/dropped_tokens"].value) > 0
    for row in range(3):
        np.testing.assert_allclose(apply(mlp, params, X[row : row + 1])[0][0], together[row], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "groups", "block"), [(50, 4, 4), (3, 8, 1), (64, 4, 8), (1, 2, 1), (40, 3, 16)])
@pytest.mark.parametrize("even", [True, False])
def test_grouped_products_are_those_of_each_row_with_its_groups_kernel(rows, groups, block, even):
    group = RNG.integers(0, groups + 1, rows) if even else np.full(rows, groups - 1)
    x = RNG.normal(size=(rows, 6)).astype(np.float32)
    kernels, weights = RNG.normal(size=(groups, 6, 5)), RNG.normal(size=(rows, 5))
    laid = grouped.arrange(jnp.asarray(group), groups, block)
    used = np.bincount(np.asarray(laid.row), minlength=rows + 1)[:rows]
    np.testing.assert_array_equal(used, group < groups)

    def product(x, kernels):
        y = grouped.grouped_dot(grouped.move(x, laid.row, laid.slot), kernels, laid)
        return jnp.sum(grouped.move(y, laid.slot, laid.row) * weights)

    def plain(x, kernels):
        every = jnp.append(kernels, jnp.zeros((1, 6, 5)), axis=0)
        return jnp.sum(jnp.einsum("ad,adf->af", x, every[group]) * weights)

    ours, wanted = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(x, kernels.astype(np.float32))
        for function in (product, plain)
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), ours, wanted)


def test_blocks_on_a_tpu_are_those_of_its_own_instruction(monkeypatch):
    """`ragged_dot` computes the same; where a TPU is the target, it is used, and rows need no padding."""
    monkeypatch.setattr(grouped.sharding, "platform", lambda: "tpu")
    params = noisy_params(MLP, X)
    np.testing.assert_allclose(
        apply(MLP, params, tokens=Tokens(REAL))[0], expected(MLP, params, real=REAL)[0], atol=1e-5
    )
    assert grouped.block_size(1000, 4) == 1


def test_positions_that_are_wanted_twice_count_once():
    at = np.array([[3, 5, 0, 0], [1, 1, 1, 2]])
    tokens = Tokens(np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]), at)
    np.testing.assert_array_equal(tokens.counted((2, 4)), [[1, 0, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(tokens.real, [[True, False, True, True], [True, True, True, False]])
    np.testing.assert_array_equal(Tokens().counted((2, 3)), np.ones((2, 3)))


def test_programs_for_any_length_compute_every_expert():
    params = noisy_params(MLP, X)
    rows, length = jax.export.symbolic_shape("b, t")

    def run(x, real):
        return MLP.apply({"params": params}, x, "float32", False, Tokens(real))[0]

    shapes = jax.ShapeDtypeStruct((rows, length, 6), np.float32), jax.ShapeDtypeStruct((rows, length), bool)
    program = jax.export.export(jax.jit(run))(*shapes)
    np.testing.assert_allclose(program.call(X, REAL), expected(MLP, params, real=REAL)[0], atol=1e-5)


@pytest.mark.slow
def test_a_stack_gives_its_blocks_their_padding():
    stack = small_transformer(mlp=ExpertMlp(experts=4, width=8))
    x = RNG.normal(size=(2, 6, 16)).astype(np.float32)
    segments = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 2, 2, 2, 0]])
    params = noisy_params(stack, x)
    inputs = BlockInputs(mask=Mask.of_segments(segments, segments))
    run = jax.jit(lambda x, inputs: stack.apply({"params": params}, x, inputs))
    output = run(x, inputs)
    assert {float(mean.weight) for mean in output.means.values()} == {2 * 9.0}
    other = run(np.where(segments[..., None] > 0, x, np.float32(9)), inputs)
    for name, mean in output.means.items():
        assert float(mean.value) == pytest.approx(float(other.means[name].value), rel=1e-6), name
    at = run(x, inputs.replace(at=np.array([[0, 2, 0], [4, 5, 1]])))
    np.testing.assert_allclose(at.hidden[0, 2], output.hidden[0, 0], atol=1e-5)
    assert float(at.means["load_balance"].weight) == 9 + 4, "one is repeated, and one is padding"


@pytest.mark.slow
def test_decoding_with_a_cache_equals_the_whole_row():
    stack = Transformer(16, 3, 2, mlp=ExpertMlp(experts=4, width=8), period=(Variant(), Variant(mlp=MLP)), dropout=0.0)
    model = Gpt(stack, vocab=20, max_length=10)
    tokens = RNG.integers(1, 20, (2, 6))
    params = noisy_params(model, tokens)
    whole = jax.jit(lambda params: model.apply({"params": params}, tokens).hidden)(params)

    @jax.jit
    def decode(params, tokens, positions, cache):
        return model.apply({"params": params}, tokens, positions, cache, method="decode")

    cache, segments = model.new_cache(2, 6), jnp.ones((2, 6), jnp.int32)
    cache, parts = cache.replace(segments=segments), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
        positions = jnp.broadcast_to(jnp.arange(6)[part], (2, part.stop - part.start))
        output = decode(params, tokens[:, part], positions, cache)
        cache = output.cache
        parts.append(output.hidden)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-5)


def test_flops_count_the_active_experts_only():
    assert MLP.flops(6) == 2 * 6 * 4 + 2 * 6 * 6 * 5
    assert dataclasses.replace(MLP, gated=False).flops(6) == 2 * 6 * 4 + 2 * 4 * 6 * 5
    dense = small_transformer(depth=3)
    mixed = small_transformer(depth=3, period=(Variant(mlp=MLP), Variant()))
    difference = 2 * (MLP.flops(16) - dense.mlp.flops(16))
    assert stack_flops(mixed, 5) - stack_flops(dense, 5) == 5 * difference
    assert (MLP.inner(6), ExpertMlp().inner(48), ExpertMlp(gated=False).inner(48)) == (5, 128, 192)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, "mlp.experts=0: expected at least 1"),
        ({"top_k": 9}, "mlp.top_k=9: expected at most mlp.experts=8"),
        ({"capacity": 0.0}, "mlp.capacity=0.0: expected more than 0"),
        ({"z_weight": -1.0}, "mlp.z_weight=-1.0: expected at least 0"),
        ({"width": -3}, "mlp.width=-3: expected at least 1"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        ExpertMlp(**fields)
