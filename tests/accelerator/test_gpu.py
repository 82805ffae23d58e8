"""Tests that need a GPU, skipped elsewhere. `benchmarks/on_gpu.sh` runs them with JAX_PLATFORMS=cuda,cpu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxformer as jf
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.masks import Mask
from jaxformer.parallel import sharding

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU, or JAX_PLATFORMS does not name it"),
]
ROWS, HEADS, SIZE = 2, 4, 64


def arrays(queries, keys):
    """Returns queries, keys, values and a cotangent in bfloat16."""
    rng = np.random.default_rng(0)
    shapes = (
        (ROWS, queries, HEADS, SIZE),
        (ROWS, HEADS, keys, SIZE),
        (ROWS, HEADS, keys, SIZE),
        (ROWS, queries, HEADS, SIZE),
    )
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def segments(length, several):
    """Returns one row of a single segment, or of several, and one whose last third is padding."""
    ids = np.ones((ROWS, length), np.int32)
    if several:
        ids[0] += np.arange(length) // 100
    ids[1, 2 * length // 3 :] = 0
    return ids


@pytest.mark.parametrize("length", [256, 512, 257])
@pytest.mark.parametrize(
    "masked", ["everywhere", "padded", "packed", "causal", "causal and padded", "causal and packed"]
)
def test_cudnn_attention_equals_attention_by_blocks(masked, length):
    ids = segments(length, "packed" in masked) if "pa" in masked else None
    mask = Mask.causal(length, ids) if "causal" in masked else None
    if masked in ("padded", "packed"):
        mask = Mask.of_segments(ids, ids)
    real = 1.0 if ids is None else jnp.asarray(ids > 0)[..., None, None]
    query, key, value, cotangent = arrays(length, length)

    def loss(kernel, query, key, value):
        output = attend(query, KeyValue(key, value), AttendOptions(mask=mask, scale=SIZE**-0.5, kernel=kernel))
        return jnp.sum(real * (output * cotangent).astype(jnp.float32)), real * output

    def results(kernel):
        function = jax.jit(jax.value_and_grad(lambda *args: loss(kernel, *args), argnums=(0, 1, 2), has_aux=True))
        with sharding.use(sharding.make_mesh(sharding.Mesh(), jax.devices("gpu")[:1]), sharding.Mesh()):
            (_, output), gradients = function(query, key, value)
            text = function.lower(query, key, value).as_text()
        assert ("cudnn" in text) == (kernel == "cudnn")
        return [np.asarray(array, np.float32) for array in (output, *gradients)]

    for ours, expected in zip(results("cudnn"), results("blocks"), strict=True):
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(ours, expected, atol=0.02 * np.abs(expected).max())


def gpt(dtype):
    stack = jf.layers.Transformer(width=256, depth=4, heads=4, dropout=0.0, attention_dropout=0.0, dtype=dtype)
    return jf.models.Gpt(stack, vocab=512, max_length=256)


def test_bfloat16_logits_on_the_gpu_are_near_float32_logits_on_the_cpu():
    tokens = np.random.default_rng(0).integers(0, 512, (2, 256)).astype(np.int32)
    with jax.default_device(jax.devices("cpu")[0]):
        params = gpt("float32").init(jax.random.key(0), tokens)["params"]
        expected = np.asarray(gpt("float32").apply({"params": params}, tokens).logits)
    with sharding.use(sharding.make_mesh(sharding.Mesh(), jax.devices("gpu")[:1]), sharding.Mesh()):
        apply = jax.jit(lambda params: gpt("bfloat16").apply({"params": params}, tokens).logits)
        ours = np.asarray(apply(jax.device_put(jax.device_get(params), jax.devices("gpu")[0])), np.float32)
    spread = expected.std()
    assert np.abs(ours - expected).max() < 0.1 * spread
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.9995


def test_a_run_that_resumes_continues_as_if_it_had_not_stopped(tiny_config, tmp_path):
    """With a constant rate, on which the number of steps has no effect."""
    losses = {}
    for name, stops in (("whole", (8,)), ("resumed", (4, 8))):
        for steps in stops:
            constant = {"optimizer.schedule.decay": "constant", "checkpoint.every": 4, "evaluation.every": 4}
            jf.fit(jf.load(tiny_config, constant, steps=steps), tmp_path / name, quiet=True)
        losses[name] = [line["loss"] for line in tiny.metrics(tmp_path / name)]
    assert len(losses["whole"]) == 8
    assert losses["whole"] == losses["resumed"]
