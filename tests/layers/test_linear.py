"""Linear maps against plain einsums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import assert_trees_close, noisy_params

from jaxformer.layers.linear import Linear, LMHead, compute_dtype

EQUATIONS = {
    "btd,dhk->bthk": ((2, 3, 8), (8, 3, 5)),
    "bthk,hkd->btd": ((2, 3, 4, 5), (4, 5, 7)),
    "btd,df->btf": ((2, 3, 8), (8, 9)),
    "btf,fd->btd": ((2, 3, 9), (9, 8)),
    "bmi,id->bmd": ((2, 3, 8), (8, 8)),
    "bmd,dc->bmc": ((2, 3, 8), (8, 2)),
}
each_equation = pytest.mark.parametrize("equation", EQUATIONS)


def case(equation, bias=True, dtype="float32"):
    shape, kernel = EQUATIONS[equation]
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    linear = Linear(equation, kernel, bias, dtype)
    return linear, noisy_params(linear, x), x


@each_equation
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_einsum_that_it_is_written_as(equation, bias):
    linear, params, x = case(equation, bias)
    expected = np.einsum(equation, x, params["kernel"]) + params.get("bias", 0)
    assert ("bias" in params) == bias
    np.testing.assert_allclose(linear.apply({"params": params}, x), expected, atol=1e-5)


@each_equation
def test_its_gradients_are_the_einsums(equation):
    linear, params, x = case(equation)

    def plain(params, x):
        return jnp.sum(jnp.sin(jnp.einsum(equation, x, params["kernel"]) + params["bias"]))

    actual = jax.grad(lambda params, x: jnp.sum(jnp.sin(linear.apply({"params": params}, x))), (0, 1))(params, x)
    assert_trees_close(actual, jax.grad(plain, (0, 1))(params, x), 1e-5)


@each_equation
def test_parameters_carry_the_letters_of_their_axes(equation):
    linear, _, x = case(equation)
    boxed = linear.init(jax.random.key(0), x)["params"]
    _, kernel, outputs = equation.replace("->", ",").split(",")
    assert boxed["kernel"].letters == kernel
    assert boxed["bias"].letters == "".join(letter for letter in kernel if letter in outputs)


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    linear, params, x = case("btd,df->btf", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(linear.init(jax.random.key(0), x))} == {jnp.dtype("float32")}
    y = linear.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    exact = np.einsum("btd,df->btf", x, params["kernel"]) + params["bias"]
    assert 0 < np.abs(np.float32(y) - exact).max() < 0.05


def test_auto_is_float32_on_cpu_and_bfloat16_where_the_mesh_is_of_an_accelerator():
    assert compute_dtype("auto") == jnp.float32
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        assert compute_dtype("auto") == jnp.bfloat16 and compute_dtype("float32") == jnp.float32


def test_kernels_begin_normal_cut_at_two_deviations_by_the_inputs_size_and_biases_at_zero():
    params = Linear("btd,df->btf", (300, 200)).init(jax.random.key(0), np.zeros((1, 1, 300)))["params"]
    kernel, bias = params["kernel"].value, params["bias"].value
    deviation = (3 * 300) ** -0.5
    assert 1.95 * deviation < float(jnp.abs(kernel).max()) < 2.001 * deviation
    assert float(kernel.std()) == pytest.approx(deviation * 0.8796, rel=0.03)  # Cutting takes an eighth.
    assert not bias.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_whatever_the_vectors_are(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 8)), dtype)
    table, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((11, 8), (11,)))
    logits = LMHead(table, bias).logits(x)
    assert logits.dtype == jnp.float32
    # In bfloat16 the factors are rounded, their products summed in float32: nothing of the result is rounded.
    rounded = np.asarray(jnp.asarray(table, dtype), np.float64)
    expected = np.asarray(x, np.float64) @ rounded.T + bias
    np.testing.assert_allclose(logits, expected, atol=1e-5)
