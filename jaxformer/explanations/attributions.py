"""Attributions: how much each part of an input contributes to a prediction.

The input of an attribution is an array of real numbers, the features: the embeddings of tokens, normalized pixels, or a
spectrogram. The prediction is a score: the sum of some of the model's logits.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers.embeddings import Embeddings
from jaxformer.layers.patches import normalise
from jaxformer.models.base import Model

STEPS = 50
"""Number of points of the integral of `integrated_gradients`."""
SOUND = "log_mel"
"""Name of the model input that contains spectrograms."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The score that attributions explain: a sum of logits of the first row."""

    indices: tuple[int, ...]
    """Index of each logit along the last axis: a label, or a token id."""
    positions: tuple[int, ...] = ()
    """Index of each logit along the axis before the last one, such as the position of a token. Empty for a model whose
    logits do not have such an axis.
    """

    def score(self, logits: jax.Array) -> jax.Array:
        """Returns the score, a scalar, for logits [batch, labels] or [batch, positions, labels]."""
        if not self.positions:
            return logits[0, np.array(self.indices)].sum()
        return logits[0, np.array(self.positions), np.array(self.indices)].sum()


@dataclasses.dataclass(frozen=True)
class Features:
    """A model as a function of one input array of real numbers."""

    model: Model
    """The model."""
    name: str
    """Name of the model input that is explained, such as `tokens` or `images`."""

    @staticmethod
    def of(model: Model) -> "Features | None":
        """Returns the features of the input that a user gives: the encoder's, if there is an encoder. None if the model
        has no input whose features are known, such as a model of waveforms.
        """
        pixels = ("images", "clips") if hasattr(model, "mean") else ()
        names = model.inputs()
        first = next((name for name in (SOUND, "inputs", *pixels, "tokens") if name in names), None)
        return None if first is None else Features(model, first)

    @property
    def is_text(self) -> bool:
        """Whether the features are embeddings of tokens."""
        return self.name in ("tokens", "inputs")

    def read(self, params: Any, inputs: Mapping[str, Any]) -> jax.Array:
        """Returns the features of an input: the embeddings of its tokens, its normalized pixels, or its spectrogram.

        Embeddings include positions and, if the model has them, token types and the norm of the embeddings.
        """
        if not self.is_text:
            array = jnp.asarray(inputs[self.name])
            if self.name == SOUND:
                return array.astype(jnp.float32)
            return normalise(array, self.model.mean, self.model.std)  # type: ignore[attr-defined]
        found: list[jax.Array] = []
        self._apply(params, inputs, lambda output: found.append(output[0]) or output)
        return found[0].astype(jnp.float32)

    def logits(self, params: Any, inputs: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """Returns the logits of the model if the features of its input are `x`. The other inputs are not changed."""
        if not self.is_text:
            return self.model.apply({"params": params}, **{**inputs, self.name: x}).logits
        return self._apply(params, inputs, lambda output: (x.astype(output[0].dtype), output[1])).logits

    def _apply(self, params: Any, inputs: Mapping[str, Any], change: Callable[[Any], Any]) -> Any:
        """Runs the model. `change` takes and returns the output of the first embeddings that it computes."""
        calls = 0

        def intercept(call, args, kwargs, context):
            nonlocal calls
            output = call(*args, **kwargs)
            if not isinstance(context.module, Embeddings) or context.method_name != "__call__":
                return output
            calls += 1
            return change(output) if calls == 1 else output

        with nn.intercept_methods(intercept):
            return self.model.apply({"params": params}, **inputs)


@functools.partial(jax.jit, static_argnums=0)
def read_features(features: Features, params: Any, inputs: Mapping[str, Any]) -> jax.Array:
    """Returns the features of an input, as `Features.read` does. Compiled."""
    return features.read(params, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(features: Features, target: Target, params: Any, inputs: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Returns the score of a prediction, a scalar, if the features of the input are `x`.

    Args:
      features: the model, as a function of its features.
      target: the logits whose sum is the score.
      params: parameters of the model.
      inputs: arguments of the model with a batch of 1, keyed by name.
      x: features, [1, ...].
    """
    return target.score(features.logits(params, inputs, x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient_times_input(
    features: Features, target: Target, params: Any, inputs: Mapping[str, Any], x: jax.Array
) -> jax.Array:
    """Computes the gradient of the score with respect to the features, times the features (Shrikumar et al. 2016).
    Same arguments as `score`. Returns an array of the shape of `x`.
    """
    return jax.grad(functools.partial(score, features, target, params, inputs))(x) * x


def integrated_gradients(
    features: Features,
    target: Target,
    params: Any,
    inputs: Mapping[str, Any],
    x: jax.Array,
    baseline: jax.Array,
) -> jax.Array:
    """Computes integrated gradients (Sundararajan et al. 2017): the integral of the gradient of the score along the
    straight line from a baseline to the features, times the difference of the two. The sum over all features is the
    difference of the scores, up to the error of the integral.

    Args:
      features: the model, as a function of its features.
      target: the logits whose sum is the score.
      params: parameters of the model.
      inputs: arguments of the model with a batch of 1, keyed by name.
      x: features, [1, ...].
      baseline: features of an input without information, of the same shape.

    Returns:
      An array of the shape of `x`. The integral is a Gauss–Legendre sum of `STEPS` points.
    """
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    points = jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
    return _integrated(features, target, params, inputs, (x, baseline, *points))


def occlusion(
    features: Features,
    target: Target,
    params: Any,
    inputs: Mapping[str, Any],
    x: tuple[jax.Array, jax.Array],
    parts: jax.Array,
) -> jax.Array:
    """Computes how much the score falls if a part of the input is replaced by the baseline (Zeiler & Fergus 2014).

    Args:
      features: the model, as a function of its features.
      target: the logits whose sum is the score.
      params: parameters of the model.
      inputs: arguments of the model with a batch of 1, keyed by name.
      x: pair of the features and the baseline, [1, ...].
      parts: boolean [parts, ...], which features each part consists of. It is broadcast to the shape of the features
        without the batch axis.

    Returns:
      The score of the features minus the score without the part, float32 [parts].
    """
    return _occluded(features, target, params, inputs, (*x, parts))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _integrated(features, target, params, inputs, arrays) -> jax.Array:
    x, baseline, alphas, weights = arrays
    gradient = jax.grad(functools.partial(score, features, target, params, inputs))

    def add(total, point):
        alpha, weight = point
        return total + weight * gradient(baseline + alpha * (x - baseline)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), (alphas, weights))
    return total * (x - baseline)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _occluded(features, target, params, inputs, arrays) -> jax.Array:
    x, baseline, parts = arrays
    whole = score(features, target, params, inputs, x)

    def without(part):
        return whole - score(features, target, params, inputs, jnp.where(part[None], baseline, x))

    return jax.lax.map(without, parts)
