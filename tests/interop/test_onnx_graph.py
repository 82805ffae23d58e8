"""Each of JAX's operations that has a translation gives the same numbers in ONNX Runtime, on axes of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir
import onnxruntime
import pytest

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_build import Argument, build

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(3, 5)).astype(np.float32)
INTEGERS = RNG.integers(-9, 9, (3, 5))
TABLE = RNG.normal(size=(7, 4)).astype(np.float32)
FUNCTIONS = {
    "arithmetic": lambda p, x, i: (x + 2) * x - x / (x * x + 1) + jnp.maximum(x, 0) - jnp.minimum(x, 1) + i % 4,
    "powers": lambda p, x, i: x**2 + jnp.abs(x) ** 1.5 + x**3 + jnp.square(x) + jnp.sqrt(jnp.abs(x)),
    "curves": lambda p, x, i: jnp.exp(x) + jnp.tanh(x) + jnp.sin(x) + jnp.cos(x) + jax.nn.sigmoid(x) + jnp.log1p(x * x),
    "errors": lambda p, x, i: jax.scipy.special.erf(x) + jax.scipy.special.erfc(x) + jax.nn.gelu(x, approximate=False),
    "roots and logs": lambda p, x, i: jax.lax.rsqrt(x * x + 1) + jnp.log(x * x + 1),
    "rounding": lambda p, x, i: jnp.floor(x) + jnp.ceil(x) + jnp.sign(x) - jnp.abs(x) + jax.lax.rem(i, jnp.int32(3)),
    "comparisons": lambda p, x, i: (
        (x > 0).astype(jnp.int32) + (x >= 0) + (x < 1) + (x <= 1) + (i == 2) + (i != 3) + ((x > 0) & ~(i > 1) | (x > 2))
    ),
    "bits": lambda p, x, i: (i & 3) + (i | 4) - (i ^ 1) + ~i,
    "choices": lambda p, x, i: jnp.where(x > 0, x, -x) + jnp.clip(x, -0.5, 0.5),
    "softmax": lambda p, x, i: jax.nn.softmax(x) + jax.nn.log_softmax(x),
    "sums": lambda p, x, i: x.sum(1) + x.max(1) + x.min(1) + jnp.prod(x, 1) + x.argmax(1) + x.mean(0).sum(),
    "whether": lambda p, x, i: (x > 0).any(1) + (x > -9).all(1) * 2 + (x > 0.5).argmax(1),
    "running sums": lambda p, x, i: jnp.cumsum(x, 1) + jnp.cumsum(i, 0) + jax.lax.cumsum(x, 1, reverse=True),
    "shapes": lambda p, x, i: x.T.reshape(-1, 1)[:, None] + jnp.zeros((1, 2, 1)),
    "parts": lambda p, x, i: jnp.concatenate([x[:, 1:3], x[:, ::2], x[-1:, :2].repeat(x.shape[0], 0)], 1),
    "one row": lambda p, x, i: x[0] + x[-1] + x[1, None],
    "edges": lambda p, x, i: jnp.pad(x, ((1, 2), (0, 3)), constant_values=7),
    "pieces": lambda p, x, i: sum(jnp.split(jnp.concatenate([x[:, :4], p["table"][:3]]), 2, axis=1)),
    "numbers": lambda p, x, i: jnp.arange(x.shape[1]) * jnp.arange(x.shape[0])[:, None] + x.shape[1],
    "rows of a table": lambda p, x, i: p["table"][jnp.abs(i) % 7],
    "places in rows": lambda p, x, i: jnp.take_along_axis(x, jnp.abs(i) % x.shape[1], 1),
    "vectors at places": lambda p, x, i: jnp.take_along_axis(
        x[..., None] * p["table"][0], jnp.abs(i)[:, :2, None] % 3, 1
    ),
    "orders": lambda p, x, i: jnp.argsort(x, 1) + jnp.sort(x, 1),
    "largest": lambda p, x, i: jax.lax.top_k(x, 2)[0] + jax.lax.top_k(x, 2)[1],
    "products": lambda p, x, i: jnp.einsum("bt,bs,td->sd", x, x, p["wide"]) + x.T @ x @ p["wide"],
    "batched products": lambda p, x, i: jnp.einsum("bti,sbi->bts", x[..., None] + p["table"][0], x.T[..., None]),
    "an update": lambda p, x, i: jax.lax.dynamic_update_slice_in_dim(x, x[:, :2] * 2, jnp.abs(i[0, 0]) % 3, axis=1),
    "a part somewhere": lambda p, x, i: jax.lax.dynamic_slice_in_dim(x, jnp.abs(i[0, 0]), 2, axis=1),
    "a loop": lambda p, x, i: jax.lax.scan(lambda x, row: (x * row.sum() + 1, None), x, p["table"])[0],
    "a branch": lambda p, x, i: jax.lax.cond(i[0, 0] > 0, lambda: x * 2, lambda: x - p["one"]),
    "inner functions": lambda p, x, i: jax.checkpoint(lambda x: jax.nn.relu(x) + jax.nn.silu(x))(x),
    "constants": lambda p, x, i: x * jnp.linspace(0, 1, 4).sum() + p["table"].reshape(2, 14).T[3, 1],
}
PARAMS = {"table": TABLE, "one": np.ones(1, np.float32), "wide": RNG.normal(size=(5, 6)).astype(np.float32)}
FIXED = ("products", "largest", "pieces", "places in rows", "parts", "a part somewhere")
"""Functions of five columns."""


def run(function, lengths, arrays):
    arguments = {"i": Argument(lengths, "int64"), "x": Argument(lengths, "float32")}
    model = build(lambda params, x, i: {"y": function(params, x, i)}, PARAMS, arguments)
    content = onnx_ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content).run(None, {"i": arrays[1], "x": arrays[0]})[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_give_the_same_numbers(name):
    lengths = ("rows", 5) if name in FIXED else ("rows", "columns")
    found = run(FUNCTIONS[name], lengths, (FLOATS, INTEGERS))
    expected = np.asarray(FUNCTIONS[name](PARAMS, jnp.asarray(FLOATS), jnp.asarray(INTEGERS)))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (
            lambda p, x, i: jax.scipy.special.gammainc(x * x, x * x),
            "the JAX operation igamma cannot be converted to ONNX",
        ),
        (
            lambda p, x, i: jax.lax.scan(lambda c, r: (c + 1, r + c), x[0, 0], p["table"])[1],
            "scan with stacked outputs",
        ),
        (
            lambda p, x, i: jax.lax.sort((i, x), num_keys=2)[1],
            "the JAX operation sort by several keys cannot be converted",
        ),
    ],
)
def test_what_has_no_translation_is_refused_by_name(function, line):
    with pytest.raises(InputError, match=line):
        run(function, ("rows", "columns"), (FLOATS, INTEGERS))
