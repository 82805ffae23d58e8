"""Attention by kernels equals attention by blocks, and each case goes to the way that serves it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS, case, documents, values_and_gradients

from jaxformer.errors import InputError
from jaxformer.layers import kernels
from jaxformer.layers.attention import AttendOptions, Attention, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer
from jaxformer.models.gpt import Gpt
from jaxformer.parallel import sharding

SCALE = 0.7
PADDING = np.array([[1] * 200 + [0] * 56, [3] * 256], np.int32)

WINDOWS = {
    "window": lambda length: Mask().windowed(40, length),
    "window in segments": lambda length: MASKS["segments"](length).windowed(40, length),
    "causal window": lambda length: Mask.causal(length).windowed(140, length),
    "causal window in segments": lambda length: MASKS["causal in segments"](length).windowed(40, length),
}


def by_blocks(mask, query, key, value):
    return attend(query, KeyValue(key, value), AttendOptions(mask=mask, scale=SCALE, kernel="blocks"))


def by_splash(mask, query, key, value):
    return kernels.splash(query, key, value, mask, SCALE, interpret=True)


def assert_equal(ours, theirs, arrays):
    run = jax.jit(lambda arrays: [values_and_gradients(function, arrays) for function in (ours, theirs)])
    actual, expected = jax.device_get(run(arrays))
    for name in expected:
        assert np.abs(expected[name]).max() > 0.1
        np.testing.assert_allclose(actual[name], expected[name], atol=2e-5, err_msg=name)


def inputs(queries, keys=None, **sizes):
    arrays = case(queries, keys or queries, **sizes)
    del arrays["bias"]
    return arrays


class TestSplash:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["everywhere", "segments", "causal", "causal in segments", *WINDOWS])
    def test_values_and_gradients_are_those_of_blocks(self, name, monkeypatch):
        """At a length that is padded, of three tiles."""
        monkeypatch.setattr(kernels, "TILES", (128,))
        mask = (MASKS | WINDOWS)[name](300)
        ways = (functools.partial(way, mask) for way in (by_splash, by_blocks))
        assert_equal(*ways, inputs(300, heads=2, groups=1))

    @pytest.mark.slow
    def test_keys_may_be_fewer_than_queries(self):
        segments = documents(300)
        mask = Mask.of_segments(segments, segments[:, :280])
        assert_equal(functools.partial(by_splash, mask), functools.partial(by_blocks, mask), inputs(300, 280))

    @pytest.mark.slow
    @pytest.mark.parametrize(("heads", "groups"), [(4, 1), (3, 3)])
    def test_rows_and_heads_are_split_over_the_mesh(self, heads, groups):
        """Where the tensor axis has more devices than there are heads of keys, and where it does not divide them."""
        mask, arrays = Mask.causal(128, documents(128, rows=4)), inputs(128, heads=heads, groups=groups, rows=4)
        mesh = sharding.make_mesh(sharding.Mesh(2, 2, 2))
        with jax.set_mesh(mesh):
            assert_equal(functools.partial(by_splash, mask), functools.partial(by_blocks, mask), arrays)
            call = jax.jit(functools.partial(by_splash, mask))
            output = call(arrays["query"], arrays["key"], arrays["value"])
        spec = sharding.partition_spec("bthk", output.shape, mesh)
        assert spec[0] == ("data", "fsdp") and spec[2] == (None if heads == 3 else "tensor")
        assert output.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), 4)

    def test_it_runs_in_a_stage_of_a_pipeline(self):
        """Whose axis of the mesh is manual already."""
        mask, arrays = Mask.causal(128), inputs(128, heads=2, groups=2, rows=2)
        shape = sharding.Mesh(1, 2, 1, pipeline=2)
        with sharding.use(sharding.make_mesh(shape), shape):
            whole = jax.sharding.PartitionSpec()

            def in_stage(way):
                call = functools.partial(way, mask)
                split = jax.shard_map(call, in_specs=whole, out_specs=whole, axis_names={"pipeline"}, check_vma=False)
                return lambda query, key, value: split(query, key, value)

            assert_equal(in_stage(by_splash), in_stage(by_blocks), arrays)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["everywhere", "causal in segments", "causal window in segments"])
    def test_positions_are_split_over_the_mesh(self, name):
        """Each device gathers the keys, and skips those that order and window hide from its queries."""
        mask, shape = (MASKS | WINDOWS)[name](512), sharding.Mesh(1, 1, 2, sequence=2)
        with sharding.use(sharding.make_mesh(shape), shape):
            ways = (functools.partial(way, mask) for way in (by_splash, by_blocks))
            assert_equal(*ways, inputs(512, heads=2, groups=1))


class TestFlash:
    """The arguments of cuDNN's function, with its twin that runs everywhere."""

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("segments", [None, PADDING], ids=["whole", "padded"])
    def test_values_and_gradients_are_those_of_blocks(self, causal, segments):
        mask = None if segments is None else Mask.of_segments(segments, segments)
        mask = Mask.causal(256, segments) if causal else mask
        real = np.ones((2, 256, 1, 1)) if segments is None else (segments > 0)[..., None, None]
        pair = None if segments is None else (jnp.asarray(segments),) * 2

        def by_flash(query, key, value):
            return real * kernels.flash(mask, SCALE, "xla")(query, key, value, pair)

        def theirs(query, key, value):
            return real * by_blocks(mask, query, key, value)

        assert_equal(by_flash, theirs, inputs(256, heads=4, groups=2, rows=2))

    @pytest.mark.parametrize("segmented", [True, False])
    def test_odd_lengths_are_padded_to_even_ones(self, segmented, monkeypatch):
        """The gradient of cuDNN's function takes even lengths only."""
        seen = []
        attention = jax.nn.dot_product_attention

        def even(query, key, value, **options):
            seen.append((query.shape[1], key.shape[1]))
            return attention(query, key, value, **options)

        monkeypatch.setattr(jax.nn, "dot_product_attention", even)
        segments = PADDING[:, :255]
        real = (segments[:, :201] > 0)[..., None, None] if segmented else 1.0
        mask = Mask.of_segments(segments[:, :201], segments) if segmented else None
        pair = (jnp.asarray(segments[:, :201]), jnp.asarray(segments)) if segmented else None
        assert_equal(
            lambda query, key, value: real * kernels.flash(mask, SCALE, "xla")(query, key, value, pair),
            lambda query, key, value: real * by_blocks(mask, query, key, value),
            inputs(201, 255, heads=4, groups=2, rows=2),
        )
        assert set(seen) == {(202, 256)}

    @pytest.mark.parametrize(
        ("queries", "keys", "taken"),
        [
            ([1, 1, 1, 1], [1, 1, 1, 1], True),
            ([2, 2, 2, 0], [2, 2, 0, 0], True),
            ([1, 1, 2, 0], [1, 1, 2, 0], False),
            ([0, 1, 1, 1], [0, 1, 1, 1], False),
            ([1, 0, 1, 1], [1, 0, 1, 1], False),
            ([1, 1, 1, 0], [2, 2, 2, 0], False),
            ([0, 0, 0, 0], [0, 0, 0, 0], False),
            ([1, 1, 1, 0], [1, 1, 2, 0], False),
            ([1, 1, 1, 0], [0, 0, 0, 0], False),
        ],
    )
    def test_large_rows_of_more_than_a_segment_and_its_padding_go_otherwise(self, queries, keys, taken, monkeypatch):
        monkeypatch.setattr(kernels, "flash", functools.partial(kernels.flash, implementation="xla"))
        monkeypatch.setattr(kernels, "MATRIX", 15)
        arrays = inputs(4, rows=2)
        mask = Mask.of_segments(np.array([[5] * 4, queries]), np.array([[5] * 4, keys]))
        otherwise = functools.partial(jnp.full, arrays["query"].shape, 7.0)
        arrays = [arrays[name] for name in ("query", "key", "value")]
        output = jax.jit(lambda *arrays: kernels.cudnn(*arrays, mask, SCALE, otherwise))(*arrays)
        assert (output != 7).all() if taken else (output == 7).all()

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("length", [256, 201])
    def test_rows_of_several_segments_use_the_kernel_too(self, length, causal, monkeypatch):
        monkeypatch.setattr(kernels, "flash", functools.partial(kernels.flash, implementation="xla"))
        segments = np.stack([np.arange(length) // 70 + 1, np.arange(length) // 100])  # The second begins with padding.
        mask = Mask.causal(length, segments) if causal else Mask.of_segments(segments, segments)
        real, arrays = (segments > 0)[..., None, None], inputs(length, heads=4, groups=2, rows=2)
        assert_equal(
            lambda query, key, value: real * kernels.cudnn(query, key, value, mask, SCALE, otherwise=None),
            lambda query, key, value: real * by_blocks(mask, query, key, value),
            arrays,
        )

    def test_the_matrix_of_the_mask_is_not_kept_for_the_backward_pass(self, monkeypatch):
        flash = kernels.flash

        def only_packed(mask, scale, packed=False):
            return flash(mask, scale, "xla", packed) if packed else lambda query, *others: query

        monkeypatch.setattr(kernels, "flash", only_packed)
        segments, arrays = np.arange(256)[None] // 100, inputs(256, heads=1, groups=1)
        mask = Mask.causal(256, segments)

        def of_query(query):
            return kernels.cudnn(query, arrays["key"], arrays["value"], mask, SCALE, otherwise=None)

        kept = jax.eval_shape(lambda query: jax.vjp(of_query, query)[1], arrays["query"])
        assert max(leaf.size for leaf in jax.tree.leaves(kept)) < 256 * 256


def sizes(queries=512, keys=512, size=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((2, queries, 4, size), dtype), jax.ShapeDtypeStruct((2, 2, keys, size), dtype)


CAUSAL, PREFIX = Mask.causal(512, np.ones((2, 512), int)), Mask.prefix(np.ones((2, 512), bool))
ELIGIBLE = {
    "no mask": {},
    "causal": {"mask": CAUSAL},
    "segments": {"mask": Mask.of_segments(np.ones((2, 512)), np.ones((2, 512)))},
    "other keys": {"keys": 300},
}
BY_BLOCKS = {
    "a bias": {"biased": True},
    "dropout": {"dropped": True},
    "a prefix": {"mask": PREFIX},
    "a cache": {"mask": Mask(None, None, np.zeros((2, 512)), np.zeros((2, 600))), "keys": 600},
    "causal with other keys": {"mask": CAUSAL, "keys": 600},
    "few queries": {"queries": 255},
    "few keys": {"keys": 255},
}


def choose(kernel="auto", mask=None, biased=False, dropped=False, **shape):
    return kernels.choose(kernel, *sizes(**shape), mask, biased, dropped)


class TestChoice:
    @pytest.mark.parametrize(("here", "way"), [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "blocks")])
    def test_each_platform_has_its_own_where_it_serves(self, here, way, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: here)
        assert {name: choose(**options) for name, options in ELIGIBLE.items()} == dict.fromkeys(ELIGIBLE, way)
        assert {name: choose(**options) for name, options in BY_BLOCKS.items()} == dict.fromkeys(BY_BLOCKS, "blocks")
        assert choose("blocks") == "blocks"

    @pytest.mark.parametrize("mask", [Mask(), CAUSAL], ids=["both ways", "causal"])
    def test_windows_go_to_what_knows_them(self, mask, monkeypatch):
        """A kernel that ignores a window attends to all keys, and no error says so."""
        windowed, wide = mask.windowed(100, 512), mask.windowed(512, 512)
        some = windowed.at(np.zeros((2, 300), int))
        for here, way in (("tpu", "splash"), ("gpu", "blocks"), ("cpu", "blocks")):
            monkeypatch.setattr(sharding, "platform", lambda here=here: here)
            assert choose(mask=windowed) == way
            assert choose(mask=some, queries=300) == "blocks"
        monkeypatch.setattr(sharding, "platform", lambda: "gpu")
        assert choose(mask=wide) == "cudnn", "it hides nothing"

    @pytest.mark.parametrize("shape", [{"dtype": jnp.float32}, {"size": 68}, {"size": 136}], ids=str)
    def test_cudnn_takes_half_precision_and_some_sizes_of_heads(self, shape, monkeypatch):
        monkeypatch.setattr(sharding, "platform", lambda: "gpu")
        assert choose(**shape) == "blocks"
        with pytest.raises(InputError, match=r"attention\.kernel=cudnn: (expected a head_dim|it computes in bfloat16)"):
            choose("cudnn", **shape)
        monkeypatch.setattr(sharding, "platform", lambda: "tpu")
        assert choose(**shape) == "splash"

    def test_the_mesh_says_what_it_compiles_for(self):
        device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert sharding.platform() == "tpu" and choose() == "splash"
        assert sharding.platform() == "cpu"

    def test_a_kernel_asked_for_in_vain_is_an_error(self, monkeypatch):
        with pytest.raises(InputError, match=r"attention\.kernel=splash: it runs on TPU, not on CPU"):
            choose("splash")
        monkeypatch.setattr(sharding, "platform", lambda: "tpu")
        with pytest.raises(
            InputError,
            match=r"attention\.kernel=splash: it does not support dropout of the weights; .*attention_dropout",
        ):
            choose("splash", dropped=True)
        with pytest.raises(InputError, match=r"attention\.kernel=splash: it does not support a bias of the scores"):
            choose("splash", biased=True)
        assert choose("splash", queries=1, mask=PREFIX) == "blocks", "as decoding needs it"

    def test_the_layer_passes_on_what_was_asked_for(self):
        x = np.zeros((1, 4, 8), np.float32)
        with pytest.raises(InputError, match=r"attention\.kernel=cudnn: it runs on GPU, not on CPU"):
            Attention(kernel="cudnn").init(jax.random.key(0), x, heads=2)


@pytest.mark.slow
def test_a_sharded_model_learns_by_splash_what_it_learns_by_blocks(monkeypatch):
    config = {"width": 16, "depth": 2, "heads": 4, "dropout": 0.0, "attention_dropout": 0.0, "remat": "full"}
    stack = Transformer(
        **config, dtype="float32", attention=Attention(kv_heads=2), mlp=Mlp(width=16), position_embedding=Rotary()
    )
    model = Gpt(stack, vocab=32, max_length=256)
    tokens, segments = np.arange(4 * 256).reshape(4, 256) % 29, documents(256, rows=4)
    called = []

    def splash(*arrays):
        called.append(len(arrays))
        return original(*arrays, interpret=True)

    def gradients():
        @jax.jit
        def step(tokens, segments):
            def loss(params):
                return jnp.sum(jnp.square(model.apply({"params": params}, tokens, segments).logits))

            params = nn.unbox(model.init(jax.random.key(0), tokens))["params"]
            return jax.value_and_grad(loss)(params)

        return jax.device_get(step(tokens, segments))

    with jax.set_mesh(sharding.make_mesh(sharding.Mesh(2, 2, 2))):
        expected = gradients()
        assert not called
        original = kernels.splash
        monkeypatch.setattr(sharding, "platform", lambda: "tpu")
        monkeypatch.setattr(kernels, "splash", splash)
        actual = gradients()
    assert called
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), actual, expected
    )
