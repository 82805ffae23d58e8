"""Ring attention equals attention on one device, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import assert_trees_close

from jaxformer.layers import ring
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.masks import Mask
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh

ROWS, LENGTH, HEADS, SIZE = 2, 16, 4, 8
SEGMENTS = jnp.asarray([[1] * 5 + [2] * 9 + [0] * 2, [1] * 16])
MEMORY = jnp.asarray([[1] * 3 + [2] * 5 + [3] * 4 + [0] * 12, [1] * 24])
PREFIX = jnp.arange(LENGTH)[None] % 7 < 3
MASKS = {
    "none": None,
    "segments": Mask.of_segments(SEGMENTS, SEGMENTS),
    "causal": Mask.causal(LENGTH),
    "packed": Mask.causal(LENGTH, SEGMENTS),
    "prefix": Mask.prefix(jnp.broadcast_to(PREFIX, SEGMENTS.shape), SEGMENTS),
    "window": Mask.of_segments(SEGMENTS, SEGMENTS).windowed(3, LENGTH),
    "causal window": Mask.causal(LENGTH, SEGMENTS).windowed(3, LENGTH),
    "wide causal window": Mask.causal(LENGTH).windowed(6, LENGTH),
    "memory": Mask.of_segments(SEGMENTS, MEMORY),
}


def arrays(keys=LENGTH, groups=HEADS, bias=None, queries=LENGTH):
    rng = np.random.default_rng(0)
    shapes = {
        "query": (ROWS, queries, HEADS, SIZE),
        "key": (ROWS, groups, keys, SIZE),
        "value": (ROWS, groups, keys, SIZE),
    }
    if bias:
        shapes["bias"] = bias
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def computed(given, mask, shape, kernel="auto"):
    """The result of attention on a mesh, and the gradients of all arrays."""

    def loss(given, mask):
        options = AttendOptions(mask, given.get("bias"), kernel=kernel)
        mixed = attend(given["query"], KeyValue(given["key"], given["value"]), options)
        seen = 1.0 if mask is None or mask.query_segments is None else mask.query_segments[..., None, None] != 0
        return (mixed * seen * jnp.sin(jnp.arange(mixed.size)).reshape(mixed.shape)).sum(), mixed * seen

    with sharding.use(sharding.make_mesh(shape), shape):
        (_, mixed), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given, mask)
    return {"mixed": mixed, **gradient}


def assert_equal(given, mask, shape, kernel="auto"):
    expected = computed(given, mask, Mesh(1))
    assert_trees_close(computed(given, mask, shape, kernel), expected, 1e-5, 1e-5)


def test_a_ring_computes_packed_causal_attention_and_its_gradients():
    assert_equal(arrays(groups=2), MASKS["packed"], Mesh(2, sequence=4))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Mesh(1, sequence=8), Mesh(1, 1, 2, sequence=4), Mesh(1, 2, 2, sequence=2)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_a_ring_computes_every_mask(name, shape):
    keys = MASKS[name].key_segments.shape[1] if name == "memory" else LENGTH
    assert_equal(arrays(keys, groups=2), MASKS[name], shape)


@pytest.mark.parametrize(("mask", "expected"), [("causal", [40] * 4), ("causal with a bias", [16, 32, 48, 64])])
def test_under_a_causal_mask_all_devices_compute_the_same_number_of_scores(mask, expected, monkeypatch):
    """Half of the scores of each block that a device receives. A bias stays with the order of the positions."""
    computed_scores, counts = ring._scores, np.zeros(4, int)

    def count(device, number):
        counts[device] += number

    def counted(part, key, scale):
        scores = computed_scores(part, key, scale)
        size = scores.shape[-2] * scores.shape[-1]
        jax.debug.callback(functools.partial(count, number=size), jax.lax.axis_index("sequence"))
        return scores

    monkeypatch.setattr(ring, "_scores", counted)
    shape, given = Mesh(1, sequence=4), arrays(bias=(HEADS, LENGTH, LENGTH) if "bias" in mask else None)
    options = AttendOptions(MASKS["causal"], given.get("bias"))
    with sharding.use(sharding.make_mesh(shape), shape):
        keys = KeyValue(given["key"], given["value"])
        jax.jit(attend)(given["query"], keys, options).block_until_ready()
        jax.effects_barrier()
    assert counts.tolist() == expected


def test_blocks_of_an_odd_length_are_not_halved():
    mask = Mask.causal(12, jnp.asarray([[1] * 5 + [2] * 7, [1] * 10 + [0] * 2]))
    assert_equal(arrays(12, queries=12), mask, Mesh(1, sequence=4))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", "blocks"])
@pytest.mark.parametrize("bias", [(HEADS, LENGTH, LENGTH), (ROWS, HEADS, LENGTH, LENGTH)], ids=["shared", "by row"])
def test_biases_have_gradients(bias, kernel):
    given = arrays(bias=bias)
    for shape in (Mesh(2, sequence=4), Mesh(1, 2, 2, sequence=2), Mesh(1, 1, 2, sequence=4)):
        assert_equal(given, MASKS["packed"], shape, kernel)


@pytest.mark.slow
def test_one_head_of_keys_is_shared_by_all_devices_of_the_tensor_axis():
    assert_equal(arrays(groups=1), MASKS["causal"], Mesh(1, 1, 4, sequence=2))


@pytest.mark.slow
def test_long_blocks_are_computed_in_chunks(monkeypatch):
    monkeypatch.setattr(ring, "BLOCK", 4)
    for name in ("packed", "causal window", "none"):
        assert_equal(arrays(bias=(HEADS, LENGTH, LENGTH)), MASKS[name], Mesh(1, sequence=2))
    assert_equal(arrays(groups=2), MASKS["packed"], Mesh(1, sequence=2))


@pytest.mark.slow
def test_gathered_keys_compute_every_mask():
    for name in ("none", "packed", "causal window"):
        assert_equal(arrays(groups=2), MASKS[name], Mesh(1, 1, 2, sequence=4), "blocks")
