"""Samplers of flow models, on velocities whose paths are known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.decoding.flow import Sampling, guided, integrate
from jaxformer.errors import InputError


def test_heun_is_of_second_order_and_euler_of_first():
    """From x(1) = 1, dx/dt = x gives x(0) = 1/e."""
    noise = jnp.ones((1, 2, 2, 1))

    @jax.jit
    def errors():
        ends = [
            [integrate(lambda x, time: x, noise, method, steps) for steps in (8, 16)] for method in ("euler", "heun")
        ]
        return [[abs(end[0, 0, 0, 0] - np.exp(-1.0)) for end in part] for part in ends]

    (euler, finer_euler), (heun, finer_heun) = jax.device_get(errors())
    assert 1.8 < euler / finer_euler < 2.2 and 3.6 < heun / finer_heun < 4.4
    assert finer_heun < 0.05 * finer_euler


def test_straight_paths_are_exact_in_one_step():
    image, noise = jnp.full((1, 2, 2, 1), 0.3), jnp.full((1, 2, 2, 1), -1.2)
    found = jax.jit(lambda: integrate(lambda x, time: noise - image, noise, "euler", 1))()
    np.testing.assert_allclose(found, image, rtol=1e-6)


def test_guidance_extrapolates():
    one, two = jnp.array([2.0]), jnp.array([1.0])
    assert [float(guided(one, two, factor)[0]) for factor in (0, 1, 3)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"steps": 0}, "objective.sampling.steps=0: expected at least 1"),
        ({"pictures": 0}, "objective.sampling.pictures=0: expected at least 1"),
        ({"guidance": -1.0}, "objective.sampling.guidance=-1.0: expected at least 0"),
        ({"method": "midpoint"}, "method='midpoint': expected euler or heun"),
    ],
)
def test_settings_that_make_no_sense(fields, line):
    with pytest.raises(InputError, match=re.escape(line)):
        Sampling(**fields)
