"""Learning rates: warmup, decay, and their limits."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.errors import InputError
from jaxformer.training.optimizers import Schedule


class TestSchedule:
    def rates(self, steps, **fields):
        return np.array(Schedule(**fields)(steps)(jnp.arange(201)))[: steps + 1]

    def test_warmup_is_linear_from_zero_to_the_peak(self):
        rates = self.rates(10, peak=2.0, warmup=4, decay="constant")
        np.testing.assert_allclose(rates, [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2, 2, 2], rtol=1e-6)

    def test_linear(self):
        rates = self.rates(6, peak=1.0, warmup=2, end=0.2)
        np.testing.assert_allclose(rates, [0, 0.5, 1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)

    def test_cosine_is_half_way_in_the_middle(self):
        rates = self.rates(8, peak=1.0, decay="cosine", end=0.5)
        np.testing.assert_allclose(rates[[0, 4, 8]], [1, 0.75, 0.5], rtol=1e-6)
        np.testing.assert_allclose(rates[2], 0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2, rtol=1e-6)

    def test_inverse_square_root_is_that_of_vaswani(self):
        width, warmup, step = 512, 4000, np.array([1, 100, 3999, 4000, 4001, 100_000])
        peak = (width * warmup) ** -0.5
        noam = width**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
        rate = Schedule(peak, warmup, "inverse_sqrt")(100_000)
        np.testing.assert_allclose([rate(i) for i in step], noam, rtol=1e-6)

    def test_without_warmup_it_starts_at_the_peak(self):
        assert Schedule(0.5)(10)(0) == 0.5

    def test_all_warmup(self):
        assert Schedule(0.5, warmup=10)(10)(10) == 0.5

    def test_after_the_end_it_stays(self):
        assert Schedule(1.0, end=0.25)(10)(99) == 0.25

    @given(
        decay=st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"]),
        warmup=st.integers(1, 50),
        steps=st.integers(50, 200),
    )
    @settings(max_examples=15)
    def test_it_rises_to_the_peak_then_never_rises_nor_jumps(self, decay, warmup, steps):
        rates = self.rates(steps, peak=1.0, warmup=warmup, decay=decay)
        assert rates[warmup] == pytest.approx(1)
        assert (np.diff(rates[: warmup + 1]) > 0).all()
        assert (np.diff(rates[warmup:]) <= 1e-6).all()
        assert (rates >= 0).all()
        if steps - warmup >= 10:
            assert np.abs(np.diff(rates[warmup:])).max() < 0.5

    @pytest.mark.parametrize(
        "fields, message",
        [
            ({"peak": -1.0}, "schedule.peak=-1.0: expected at least 0"),
            ({"peak": float("nan")}, "schedule.peak=nan: expected at least 0"),
            ({"peak": "1e-3"}, "peak='1e-3': expected a float"),
            ({"warmup": -1}, "schedule.warmup=-1: expected at least 0"),
            ({"warmup": 1.5}, "warmup=1.5: expected an int"),
            ({"end": 1.5}, "schedule.end=1.5: expected 0 to 1"),
            ({"end": 0.5, "decay": "constant"}, "schedule.end=0.5: expected 0 with decay=constant"),
            (
                {"decay": "inverse_sqrt"},
                "schedule.warmup=0: expected at least 1 for inverse_sqrt",
            ),
            (
                {"decay": "step"},
                "decay='step': expected one of constant, linear, cosine, inverse_sqrt",
            ),
        ],
    )
    def test_bad_fields(self, fields, message):
        with pytest.raises(InputError, match=message):
            Schedule(**fields)

    def test_a_warmup_longer_than_the_run_is_cut_off(self):
        rates = self.rates(10, peak=1.0, warmup=20)
        assert rates[10] == pytest.approx(0.5)
