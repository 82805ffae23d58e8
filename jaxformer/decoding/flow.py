"""Samplers of flow models: they turn noise into images by integrating a velocity over time (Lipman et al. 2023; Liu et
al. 2023).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxformer import fields

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""Function (images, time) that returns the velocity of noisy images, float32 of their shape. `time` is a scalar from 0
(no noise) to 1 (only noise).
"""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings for generating images."""

    method: Literal["euler", "heun"] = "heun"
    """How the velocity is integrated: `euler` evaluates the model once per step, and `heun` twice, which is more exact.
    """
    steps: int = 25
    """Number of steps."""
    guidance: float = 3.0
    """Factor by which the difference between the predictions with and without the text or class is multiplied
    (classifier-free guidance, Ho & Salimans 2022). With 1, there is no guidance.
    """
    pictures: int = 4
    """Number of images per text or class."""
    seed: int = 0
    """Random seed of the noise."""

    def __post_init__(self):
        fields.check(self)
        for name, least in (("steps", 1), ("guidance", 0), ("pictures", 1), ("seed", 0)):
            fields.at_least(f"objective.sampling.{name}", getattr(self, name), least)


def integrate(velocity: Velocity, noise: jax.Array, method: str, steps: int) -> jax.Array:
    """Integrates a velocity from time 1 to time 0 in equal steps.

    Args:
      velocity: function that computes the velocity at a time.
      noise: images at time 1, [batch, height, width, channels].
      method: `euler`, or `heun`, which corrects each step by the velocity at its end (Karras et al. 2022, algorithm 1).
      steps: number of steps.

    Returns:
      Images at time 0, of the shape of `noise`.
    """
    times = jnp.linspace(1.0, 0.0, steps + 1)

    def step(x: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        start, end = ends
        slope = velocity(x, start)
        moved = x + (end - start) * slope
        if method == "heun":
            moved = x + (end - start) * (slope + velocity(moved, end)) / 2
        return moved, None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def guided(conditional: jax.Array, unconditional: jax.Array, guidance: float) -> jax.Array:
    """Extrapolates from the prediction without a condition to the one with it (classifier-free guidance, Ho & Salimans
    2022).

    Args:
      conditional: predictions with the condition, of any shape.
      unconditional: predictions without it, of the same shape.
      guidance: 0 for the latter, 1 for the former, and above 1 for predictions that follow the condition more closely.
    """
    return unconditional + guidance * (conditional - unconditional)
