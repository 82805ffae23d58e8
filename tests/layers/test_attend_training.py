"""Dropout of attention in parts and blocks, in the forward and backward pass, and the memory that it needs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS, case, plain, values_and_gradients

from jaxformer.layers import attention
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.dropout import keep_mask
from jaxformer.layers.masks import Mask


class TestDropout:
    """Where values are unit vectors, the output is the weights that are left."""

    RATE, KEY = 0.3, jax.random.key(11)

    def arrays(self, length):
        arrays = case(length, length, heads=2, groups=1, rows=2)
        return arrays | {"value": jnp.broadcast_to(jnp.eye(length), (2, 1, length, length))}

    def run(self, length, mask, rate=RATE, key=KEY):
        arrays = self.arrays(length)
        keys = KeyValue(arrays["key"], arrays["value"])
        left, all_weights = jax.jit(
            lambda: (
                attend(arrays["query"], keys, AttendOptions(mask=mask, rate=rate, key=key)),
                attend(arrays["query"], keys, AttendOptions(mask=mask)),
            )
        )()
        return np.asarray(left), np.asarray(all_weights)

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "length"), [("everywhere", 96), ("causal", 520), ("everywhere", 520)])
    def test_the_share_that_stays_is_the_rates_and_the_rest_is_scaled(self, name, length):
        left, weights = self.run(length, MASKS[name](length))
        _, probability = keep_mask(self.KEY, self.RATE, (1,))
        kept, seen = left != 0, weights > 0
        np.testing.assert_allclose(left[kept], weights[kept] / probability, rtol=1e-5)
        # In every quarter of the queries, and of the keys that they see: five deviations are one case in a million.
        for queries in np.array_split(np.arange(length), 4):
            part, count = kept[:, queries], seen[:, queries].sum()
            assert abs(part.sum() / count - probability) < 5 * (probability * (1 - probability) / count) ** 0.5

    @pytest.mark.parametrize(("name", "size"), [("everywhere", 32), ("causal", 64)])
    def test_rows_heads_blocks_and_parts_drop_independently(self, name, size, monkeypatch):
        if name == "everywhere":
            monkeypatch.setattr(attention, "BLOCK", size)
        left, weights = self.run(256, MASKS[name](256))

        def part(row, head, number):
            """Which weights of some queries are kept, and which there are, in the order in which bits are drawn."""
            end = (number + 1) * size
            place = row, slice(end - size, end), head, slice(0, 256 if name == "everywhere" else end)
            return (left[place] != 0).ravel(), (weights[place] > 0).ravel()

        parts = [part(0, 0, number) for number in range(256 // size)] + [part(1, 0, 0), part(0, 1, 0)]
        expected = self.RATE**2 + (1 - self.RATE) ** 2
        for (kept, seen), (other_kept, other_seen) in itertools.combinations(parts, 2):
            shorter = min(len(kept), len(other_kept))
            both = seen[:shorter] & other_seen[:shorter]
            agreement = (kept[:shorter] == other_kept[:shorter])[both].mean()
            assert abs(agreement - expected) < 5 * (expected * (1 - expected) / both.sum()) ** 0.5

    @pytest.mark.slow
    def test_a_key_decides_it_and_none_drops_nothing(self):
        left, weights = self.run(40, None)
        np.testing.assert_array_equal(left, self.run(40, None)[0])
        assert (left != self.run(40, None, key=jax.random.key(12))[0]).any()
        np.testing.assert_array_equal(self.run(40, None, key=None)[0], weights)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["causal", "segments"])
    def test_its_gradient_uses_the_same_mask(self, name, monkeypatch):
        """Blocks are computed again going back: what was dropped must be dropped again."""
        monkeypatch.setattr(attention, "BLOCK", 24)
        length = 260 if name == "causal" else 70
        mask, arrays = MASKS[name](length), self.arrays(length)
        left, _ = self.run(length, mask)
        kept = jnp.moveaxis(jnp.where(left != 0, 1 / keep_mask(self.KEY, self.RATE, (1,))[1], 0), 1, 2)
        arrays["cotangent"] = jnp.broadcast_to(arrays["query"][..., :1], left.shape) * jnp.cos(jnp.arange(length))
        del arrays["bias"]

        def ours(query, key, value):
            return attend(query, KeyValue(key, value), AttendOptions(mask=mask, rate=self.RATE, key=self.KEY))

        def theirs(query, key, value):
            return plain(query, key, value, mask.dense(), kept=kept)

        run = jax.jit(lambda arrays: [values_and_gradients(function, arrays) for function in (ours, theirs)])
        actual, expected = run(arrays)
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segments", "causal in segments"])
def test_the_memory_of_a_training_step_grows_with_the_length_and_not_with_its_square(name, monkeypatch):
    if name != "segments":
        monkeypatch.setattr(attention, "BLOCK", 128)  # So that each part of a causal row is longer.

    def temporaries(length):
        def loss(query, key, value, segments):
            mask = (Mask.causal(length, segments), Mask.of_segments(segments, segments))[name == "segments"]
            output = attend(query, KeyValue(key, value), AttendOptions(mask=mask, rate=0.1, key=jax.random.key(0)))
            return jnp.sum(jnp.sin(output))

        query, key = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, length, 2, 8), (1, 2, length, 8)))
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
        step = jax.jit(jax.grad(loss, (0, 1, 2)))
        return step.lower(query, key, key, segments).compile().memory_analysis().temp_size_in_bytes

    sizes = {length: temporaries(length) for length in (1024, 4096)}
    assert sizes[4096] < 5 * sizes[1024]
    one_matrix_of_weights = 4 * 2 * 4096**2
    assert sizes[4096] < one_matrix_of_weights / 2
