"""Products in narrower types equal those of rounded inputs, and models learn with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import InputError
from jaxformer.layers import products
from jaxformer.layers.linear import Linear, LMHead, compute_dtype
from jaxformer.parallel import sharding

NARROW = (products.ROUNDED, *products.TYPES)
ROWS, IN, OUT = 300, 320, 260
RNG = np.random.default_rng(0)
X, KERNEL, COTANGENT = (
    RNG.normal(size=size).astype(np.float32) * scale
    for size, scale in (((4, ROWS // 4, IN), 1), ((IN, OUT), IN**-0.5), ((4, ROWS // 4, OUT), 1))
)


def rounded(array):
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


def exact(convert=np.float64):
    """The product and its gradients, computed in float64 from converted inputs."""
    x, kernel, gradient = convert(X), convert(KERNEL), convert(COTANGENT)
    return x @ kernel, gradient @ kernel.T, np.einsum("bri,bro->io", x, gradient)


@functools.cache
def computed(kind):
    def product(x, kernel):
        return products.multiply(x, kernel, kind)

    @jax.jit
    def run(x, kernel, cotangent):
        y, back = jax.vjp(product, x, kernel)
        return y, *back(cotangent)

    return jax.device_get(run(X, KERNEL, COTANGENT))


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_bfloat16_products_are_those_of_rounded_inputs_summed_in_float32():
    for actual, expected in zip(computed(products.ROUNDED), exact(rounded), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_small_products_stay_in_float32():
    x, kernel = X[:1, :60], KERNEL
    assert products.is_large(X.shape, KERNEL.shape) and not products.is_large(x.shape, kernel.shape)
    output = jax.jit(functools.partial(products.multiply, kind=products.ROUNDED))(x, kernel)
    np.testing.assert_array_equal(output, jax.jit(jnp.matmul)(x, kernel))
    assert not products.is_large(jax.export.symbolic_shape("b, t, 320"), (320, 320)), "sizes that are not known"
    assert not products.is_large((0, 320), (320, 320))


@pytest.mark.parametrize(("kind", "forward", "backward"), [("int8", 0.02, 0.02), ("float8", 0.05, 0.07)])
def test_quantized_products_are_close(kind, forward, backward):
    """A float8 of inputs has three bits after the point, one of gradients two."""
    pytest.importorskip("qwix", reason="extra `quantize`")
    y, dx, dkernel = (relative_error(*pair) for pair in zip(computed(kind), exact(), strict=True))
    assert forward / 10 < y < forward and backward / 10 < dx < backward
    assert dkernel < 1e-5, "gradients of kernels are not quantized"


@pytest.mark.parametrize(("kind", "there"), [(products.ROUNDED, "bf16"), ("int8", "i8"), ("float8", "f8E4M3FN")])
def test_the_program_multiplies_the_narrow_type(kind, there):
    if kind in products.TYPES:
        pytest.importorskip("qwix", reason="extra `quantize`")
    text = jax.jit(functools.partial(products.multiply, kind=kind)).lower(X, KERNEL).as_text()
    assert f"x{there}>, tensor<{IN}x{OUT}x{there}>" in text.partition("dot_general")[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NARROW)
def test_a_split_product_is_the_same(kind):
    if kind in products.TYPES:
        pytest.importorskip("qwix", reason="extra `quantize`")
    layer = Linear("btd,df->btf", (IN, OUT), dtype=kind)
    shape = sharding.Mesh(2, 2, 2)
    params = layer.init(jax.random.key(0), X)["params"]

    def run(params, x):
        return jax.value_and_grad(lambda params, x: jnp.sum(layer.apply({"params": params}, x) * COTANGENT), (0, 1))(
            params, x
        )

    alone = jax.jit(run)(params, X)
    with sharding.use(sharding.make_mesh(shape), shape):
        split = jax.jit(run)(params, X)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        # The compiler may leave out that gradients are rounded: a part in 2**9.
        np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(one).max())


def test_the_table_of_the_vocabulary_is_rounded_too():
    head = LMHead(jnp.asarray(KERNEL), dtype=products.ROUNDED)
    x = RNG.normal(size=(ROWS, OUT)).astype(np.float32)
    logits = jax.jit(lambda x: head.logits(x))(x)
    expected = rounded(x) @ rounded(KERNEL).T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_activations_have_the_type_of_auto():
    assert compute_dtype(products.ROUNDED) == jnp.float32
    assert {compute_dtype(kind) for kind in products.TYPES} == {compute_dtype("auto")}


def test_without_qwix_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dtype=int8: Qwix is not installed; pip install 'jaxformer\[quantize\]'"):
        products.multiply(X, KERNEL, "int8")
