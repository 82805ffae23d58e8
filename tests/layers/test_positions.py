"""Positions against their papers' formulas: sinusoids, rotations, buckets of distances."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.errors import InputError
from jaxformer.layers.positions import Placement, RelativePositions, Rotary, rotate, sinusoidal


class TestSinusoidal:
    def test_sines_then_cosines_of_the_papers_angles(self):
        width, longest, position_ids = 10, 100.0, [0, 1, 7, 300]
        encoding = sinusoidal(np.array([position_ids]), width, longest)
        assert encoding.shape == (1, 4, width)
        assert encoding.dtype == np.float32
        for row, position in zip(encoding[0], position_ids, strict=True):
            angles = [position / longest ** (2 * i / width) for i in range(width // 2)]
            expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            np.testing.assert_allclose(row, expected, atol=1e-6)

    @pytest.mark.parametrize("width", [8, 512])
    def test_it_is_exact_at_far_positions_too(self, width):
        """Angles of many turns, rounded to float32, would be off by 1e-4 here."""
        position_ids = np.arange(0, 4096, 5)
        angles = position_ids[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
        expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
        np.testing.assert_allclose(jax.jit(lambda p: sinusoidal(p, width))(position_ids), expected, atol=4e-6)

    def test_a_shift_is_a_rotation(self):
        """PE(p + k) is a linear function of PE(p), the same for every p: the paper's reason for this encoding."""
        width, shift = 8, 5
        angles = shift * 10_000.0 ** (-np.arange(0, width, 2) / width)
        position_ids = np.arange(40)
        sines, cosines = np.split(np.asarray(sinusoidal(position_ids, width)), 2, axis=-1)
        turned = np.concatenate(
            [sines * np.cos(angles) + cosines * np.sin(angles), cosines * np.cos(angles) - sines * np.sin(angles)], -1
        )
        np.testing.assert_allclose(sinusoidal(position_ids + shift, width), turned, atol=1e-5)

    def test_an_odd_width_is_refused(self):
        with pytest.raises(ValueError, match="width 7 is odd"):
            sinusoidal(np.arange(3), 7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotated(x, rotary, position_ids):
    """Vectors [b, t, h, k], rotated."""
    return rotate(x, rotary(position_ids, None, None, x.shape[2], x.shape[3]).query)


SCALINGS = {
    "none": Rotary(100.0),
    "linear": Rotary(100.0, "linear", factor=3.0),
    "llama3": Rotary(100.0, "llama3", factor=4.0, pretrained=64),
}
each_scaling = pytest.mark.parametrize("rotary", SCALINGS.values(), ids=SCALINGS.keys())


class TestRotary:
    def test_each_pair_turns_by_its_position_times_its_frequency(self):
        x, base, position_ids = normal(2, 3, 2, 6), 50.0, np.array([[0, 4, 9], [3, 3, 70]])
        # As complex numbers: a rotation is a product.
        pairs = x[..., :3] + 1j * x[..., 3:]
        angles = position_ids[..., None, None] * base ** (-np.arange(3) / 3)
        expected = pairs * np.exp(1j * angles)
        expected = np.concatenate([expected.real, expected.imag], axis=-1)
        np.testing.assert_allclose(rotated(x, Rotary(base), position_ids), expected, atol=1e-5)

    @each_scaling
    def test_scores_depend_on_distances_alone(self, rotary):
        query, key = normal(1, 6, 1, 8), normal(1, 6, 1, 8, seed=1)
        position_ids = np.array([[0, 1, 5, 6, 11, 30]])

        @jax.jit
        def scores(shift):
            return jnp.einsum(
                "bthk,bshk->ts",
                rotated(query, rotary, position_ids + shift),
                rotated(key, rotary, position_ids + shift),
            )

        np.testing.assert_allclose(scores(500), scores(0), atol=1e-3)
        still = jnp.einsum("bthk,bshk->ts", query, key)
        assert np.abs(scores(0) - still).max() > 0.5, "and they do depend on them"
        np.testing.assert_allclose(np.diag(scores(7)), np.diag(still), atol=1e-5)

    @each_scaling
    def test_it_keeps_lengths_and_is_the_identity_at_zero(self, rotary):
        x = normal(2, 5, 3, 8)
        turned = rotated(x, rotary, np.arange(5)[None])
        np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), atol=1e-5)
        np.testing.assert_array_equal(turned[:, 0], x[:, 0])

    def test_linear_scaling_brings_positions_closer(self):
        x, position_ids = normal(1, 9, 1, 8), 6 * np.arange(9)[None]
        scaled = rotated(x, Rotary(100.0, "linear", factor=3.0), position_ids)
        np.testing.assert_allclose(scaled, rotated(x, Rotary(100.0), position_ids // 3), atol=1e-4)

    def test_llama3_scaling_spares_what_turns_often_and_slows_what_hardly_turns(self):
        size, plain = 64, 10_000.0 ** (-np.arange(0, 64, 2) / 64)
        factor, pretrained, low, high = 8.0, 1000, 1.5, 5.0
        scaled = Rotary(10_000.0, "llama3", factor, pretrained, low, high).frequencies(size)
        turns = pretrained * plain / (2 * math.pi)
        ratio = scaled / plain
        np.testing.assert_allclose(ratio[turns > high], 1, rtol=1e-5)
        np.testing.assert_allclose(ratio[turns < low], 1 / factor, rtol=1e-5)
        between = (turns >= low) & (turns <= high)
        assert between.sum() > 2
        share = (turns[between] - low) / (high - low)
        np.testing.assert_allclose(ratio[between], share + (1 - share) / factor, rtol=1e-4)

    def test_bfloat16_is_rotated_in_float32(self):
        x, position_ids = jnp.asarray(normal(1, 4, 2, 8), jnp.bfloat16), np.array([[0, 900, 901, 4000]])
        turned = rotated(x, Rotary(), position_ids)
        assert turned.dtype == jnp.bfloat16
        exact = rotated(x.astype(jnp.float32), Rotary(), position_ids)
        np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))

    def test_an_odd_head_is_refused(self):
        with pytest.raises(InputError, match="a head of 7 dimensions: rotary positions need an even number"):
            Rotary()(np.arange(3)[None], None, None, 2, 7)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"base": 0.0}, "positions.base=0.0: expected above 0"),
            ({"factor": -1.0}, "positions.factor=-1.0: expected above 0"),
            ({"pretrained": 0}, "positions.pretrained=0: expected above 0"),
            ({"low": float("nan")}, "positions.low=nan: expected above 0"),
            ({"low": 4.0}, "positions.high=4.0: expected above positions.low=4.0"),
        ],
    )
    def test_impossible_fields_are_refused(self, fields, message):
        with pytest.raises(InputError) as error:
            Rotary(**fields)
        assert str(error.value) == message


class TestRelativePositions:
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (12, 500)])
    def test_near_distances_have_buckets_of_their_own_and_far_ones_share_ever_wider_ones(
        self, buckets, longest, bidirectional
    ):
        bucket = RelativePositions(buckets, longest, bidirectional).bucket
        one_side = buckets // 2 if bidirectional else buckets
        back = np.asarray(bucket(-np.arange(3 * longest)))
        exact = one_side // 2
        np.testing.assert_array_equal(back[: exact + 1], np.arange(exact + 1))
        assert set(back) == set(range(one_side)), "every bucket is used"
        assert (np.diff(back) >= 0).all()
        widths = np.bincount(back)[exact:-1]
        assert (np.diff(widths) >= -1).all(), "wider and wider, but for rounding"
        assert (back[longest:] == one_side - 1).all()
        assert back[longest * 9 // 10] == one_side - 1 and back[exact + 1] < one_side - 1

    def test_what_is_ahead_has_the_other_half_of_the_buckets(self):
        distances = np.arange(1, 300)
        bucket = RelativePositions(32, 128).bucket
        np.testing.assert_array_equal(bucket(distances), np.asarray(bucket(-distances)) + 16)
        assert int(bucket(np.array(0))) == 0

    def test_a_decoder_takes_what_is_ahead_for_here(self):
        ahead = RelativePositions(32, 128, bidirectional=False).bucket(np.arange(300))
        assert not ahead.any()

    def test_each_head_reads_its_column_at_the_bucket_of_key_minus_query(self):
        scheme, heads = RelativePositions(8, 20), 3
        query_index, key_index = np.array([0, 5, 17]), np.arange(9)
        inputs = (None, query_index, key_index)
        params = noisy_params(scheme, *inputs, heads=heads, head_dim=4)
        bias = scheme.apply({"params": params}, *inputs, heads=heads, head_dim=4).bias
        assert params["bias"].shape == (8, heads)
        assert bias.shape == (heads, 3, 9)
        for head, query, key in [(0, 0, 0), (1, 1, 2), (2, 2, 8), (2, 0, 8), (1, 2, 0)]:
            row = int(scheme.bucket(np.array(key_index[key] - query_index[query])))
            assert bias[head, query, key] == params["bias"][row, head]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"buckets": 7}, "positions.buckets=7: expected an even number, at least 4"),
            ({"buckets": 2}, "positions.buckets=2: expected an even number, at least 4"),
            ({"buckets": 0, "bidirectional": False}, "positions.buckets=0: expected an even number, at least 2"),
            ({"longest": 8}, "positions.longest=8: expected above 8"),
            ({"longest": 16, "bidirectional": False}, "positions.longest=16: expected above 16"),
        ],
    )
    def test_impossible_fields_are_refused(self, fields, message):
        with pytest.raises(InputError) as error:
            RelativePositions(**fields)
        assert str(error.value) == message


@pytest.mark.parametrize("rows", [1, 2])
def test_a_placement_at_some_positions_is_that_of_those_queries_and_of_all_keys(rows):
    at = np.array([[3, 0, 0], [1, 4, 2]])
    rotation = Rotary()(np.arange(5)[None] * np.arange(1, rows + 1)[:, None], None, None, 2, 6).query
    bias = normal(2, 5, 7)
    placed = Placement(rotation, rotation, bias).at(at)
    for taken, array in zip(placed.query, rotation, strict=True):
        whole = np.broadcast_to(array, (2, *array.shape[1:]))
        np.testing.assert_array_equal(taken, np.stack([whole[row][at[row]] for row in range(2)]))
    assert placed.key is rotation
    np.testing.assert_array_equal(placed.bias, np.stack([bias[:, at[row]] for row in range(2)]))


def test_a_placement_of_nothing_stays_nothing():
    assert Placement().at(np.array([[1]])) == Placement()
