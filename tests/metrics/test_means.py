"""Means that merge exactly."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.metrics.means import Covariance, Mean, merge


def test_the_mean_is_weighted_and_in_float32():
    mean = Mean.of(jnp.array([1, 2, 10]), jnp.array([1, 3, 0], jnp.bfloat16))
    assert (float(mean.sum), float(mean.weight), float(mean.value)) == (7, 4, 1.75)
    assert mean.sum.dtype == mean.weight.dtype == jnp.float32


def test_values_in_bfloat16_are_summed_in_float32():
    assert float(Mean.of(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)).sum) == 1000


def test_the_mean_of_nothing_is_zero():
    assert float(Mean.of(jnp.array([3.0]), jnp.array([0.0])).value) == 0
    assert float(merge([{"a": Mean(jnp.float32(0), jnp.float32(0))}])["a"].value) == 0


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(0, 9)), min_size=1), st.data())
def test_merging_the_parts_is_the_mean_of_the_whole(pairs, data):
    cut = data.draw(st.integers(0, len(pairs)))
    values, weights = np.array(pairs).T

    def part(which):
        return {"a": Mean(np.float32((values * weights)[which].sum()), np.float32(weights[which].sum()))}

    merged = merge([part(slice(cut)), part(slice(cut, None))])["a"]
    assert merged.sum == (values * weights).sum()
    assert merged.weight == weights.sum()
    assert merged.value == pytest.approx(np.average(values, weights=weights) if weights.any() else 0)


def test_a_long_merge_keeps_what_float32_would_drop():
    parts = [{"a": Mean(np.float32(2**24), np.float32(2**24))}, *({"a": Mean(np.float32(1), np.float32(1))},) * 9]
    merged = merge(parts)["a"]
    assert (merged.sum, merged.weight) == (2**24 + 9, 2**24 + 9)


def test_merging_continues_from_merged_means():
    part = {"a": Mean(np.float32(1.5), np.float32(2))}
    once = merge([part, part, part])
    again = merge([merge([part, part]), part])
    assert again["a"] == once["a"]


def test_parts_may_have_different_names_and_arrays():
    counts = Mean(np.array([1.0, 2.0], np.float32), np.float32(3))
    merged = merge([{"a": Mean(np.float32(1), np.float32(1))}, {"counts": counts}, {"counts": counts}])
    assert set(merged) == {"a", "counts"}
    np.testing.assert_array_equal(merged["counts"].sum, [2, 4])
    np.testing.assert_array_equal(merged["counts"].value, [1 / 3, 2 / 3])


def test_merging_nothing_is_nothing():
    assert merge([]) == {}


@pytest.mark.parametrize("offset, spread", [(0, 1), (1e5, 3), (-3e6, 40), (1e-6, 1e-9)])
@pytest.mark.parametrize("parts", [1, 7, 400])
def test_correlations_of_values_far_from_zero_are_those_of_scipy(offset, spread, parts):
    """However the values are divided, some parts having one value or none."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 10_000)
    values = np.stack([x, 0.3 * x + rng.normal(0, 1, 10_000)], -1) * spread + offset
    values = values.astype(np.float32)
    weights = (rng.random(10_000) < 0.9).astype(np.float32)
    if parts == 400:
        weights[: 10_000 // 400] = 0
    pairs = zip(np.array_split(values, parts), np.array_split(weights, parts), strict=True)
    found = merge([{"a": Covariance.of(jnp.array(some), jnp.array(weight))} for some, weight in pairs])["a"]
    kept = values[weights > 0].astype(np.float64)
    assert found.correlation == pytest.approx(scipy.stats.pearsonr(*kept.T).statistic, abs=1e-5)
    assert found.weight == len(kept)
    np.testing.assert_allclose(found.center, kept.mean(0), rtol=0, atol=1e-5 * spread)
    np.testing.assert_allclose(found.products / len(kept), np.cov(kept.T, bias=True), rtol=1e-4)
    assert (
        merge([{"a": found}, {"a": Covariance.of(jnp.zeros((3, 2)), jnp.zeros(3))}])["a"].correlation
        == found.correlation
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, -1e5])
def test_values_that_do_not_vary_have_no_correlation(value):
    constant = np.stack([np.full(999, value), np.arange(999)], -1).astype(np.float32)
    merged = merge([{"a": Covariance.of(jnp.array(part), jnp.ones(len(part)))} for part in np.array_split(constant, 5)])
    assert merged["a"].correlation == 0
    assert Covariance.of(jnp.zeros((4, 2)), jnp.zeros(4)).correlation == 0
