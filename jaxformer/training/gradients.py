"""Computes the loss of a batch and its gradient. If the batch is divided into micro-batches, the results are the same
as for the whole batch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.config import Experiment
from jaxformer.metrics.base import is_mean
from jaxformer.metrics.means import Mean, with_auxiliary
from jaxformer.objectives.base import BatchObjective
from jaxformer.parallel import sharding
from jaxformer.parameter_paths import join
from jaxformer.training.state import model_params, split_frozen

Means = dict[str, Mean]


def loss_and_gradient(experiment: Experiment, params, batch, key, reference=None) -> tuple[Means, Any]:
    """Computes the weighted means of a batch (losses and metrics), and the gradient of its loss with respect to the
    trained parameters.

    Each weighted mean is a pair (sum, weight). The loss is Σ c · sum / weight, where the objective's `loss_weights`
    maps the name of each mean in the loss to its coefficient c. With micro-batches, each sum is divided by the weight
    of the whole batch, so the gradients add up to the gradient of the whole batch even if micro-batches differ in
    weight. For objectives that compare the examples of a batch with each other (`BatchObjective`), a first pass
    computes the vectors of all examples, so that each micro-batch is compared with the whole batch.

    `reference` contains the parameters of the reference model, if the objective needs one (`reference_params`).
    """
    objective, model, parts = experiment.objective, experiment.model, experiment.optimizer.accumulate
    trained, frozen = split_frozen(experiment, params)

    def gradient(micro, key, totals):
        micro = objective.with_reference(model, reference, micro)

        def loss(trained):
            means = objective(model, model_params(experiment, join(trained, frozen)), micro, key)
            return _weighted(objective.loss_weights, means, totals), means

        (_, means), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        return means, gradient

    if parts == 1:
        return gradient(batch, key, None)
    if isinstance(objective, BatchObjective):
        return _by_cached_vectors(experiment, objective, params, batch, key)
    # Only the weights are used, so the compiler removes the rest of this pass. Without a key, there may be other terms.
    compared = objective.with_reference(model, reference, batch)
    terms = objective(model, model_params(experiment, params), compared)
    totals = {name: mean.weight for name, mean in terms.items() if is_mean(mean)}

    def body(total, numbered):
        number, micro = numbered
        means, part = gradient(micro, jax.random.fold_in(key, number), totals)
        return jax.tree.map(jnp.add, total, part), means

    zeros = jax.tree.map(jnp.zeros_like, trained)
    total, means = jax.lax.scan(body, zeros, (jnp.arange(parts), _split(batch, parts)))
    return jax.tree.map(lambda array: array.sum(0), means), total


def _by_cached_vectors(experiment: Experiment, objective: BatchObjective, params, batch, key) -> tuple[Means, Any]:
    """Computes the same as `loss_and_gradient` for an objective that compares the examples of the whole batch (Gao et
    al. 2021, gradient caching).

    A first pass computes the vectors of all examples without storing activations. The loss of all vectors gives the
    gradients of the vectors. A second pass with the same dropout propagates these gradients to the parameters, one
    micro-batch at a time.
    """
    model, parts = experiment.model, experiment.optimizer.accumulate
    trained, frozen = split_frozen(experiment, params)
    micros = (jnp.arange(parts), _split(batch, parts))

    def vectors_of(trained, numbered):
        number, micro = numbered
        params = model_params(experiment, join(trained, frozen))
        return objective.vectors(model, params, micro, jax.random.fold_in(key, number))

    def loss(trained, vectors):
        merged = jax.tree.map(_merge, vectors, is_leaf=is_mean)
        means = objective.compare(model, model_params(experiment, join(trained, frozen)), merged, batch)
        return _weighted(objective.loss_weights, means, None), means

    _, vectors = jax.lax.scan(lambda _, numbered: (None, vectors_of(trained, numbered)), None, micros)
    derivative = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, means), (direct, of_vectors) = derivative(trained, vectors)

    def body(total, numbered):
        micro, gradient = numbered
        _, pull_back = jax.vjp(lambda trained: vectors_of(trained, micro), trained)
        return jax.tree.map(jnp.add, total, pull_back(gradient)[0]), None

    total, _ = jax.lax.scan(body, direct, (micros, of_vectors))
    return means, total


def _weighted(weights: Mapping[str, float], means: Means, totals: Mapping[str, jax.Array] | None) -> jax.Array:
    """Computes the total loss: the weighted sum of the losses and auxiliary losses.

    Args:
      weights: weight of each loss, keyed by name.
      means: losses as weighted means, keyed by name.
      totals: for a micro-batch, the total weight of each mean in the whole batch, by which its sum is divided. If None,
        the sum is divided by the mean's own weight.
    """
    parts = (
        weight * Mean(means[name].sum, totals[name] if totals else means[name].weight).value
        for name, weight in with_auxiliary(weights, means).items()
    )
    return jnp.asarray(sum(parts))


def _split(batch: Mapping[str, jax.Array], parts: int) -> Mapping[str, jax.Array]:
    """Splits a batch into micro-batches [parts, rows, ...], each with an equal share of the rows of every device."""

    def split(array):
        return sharding.constrain(
            array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1), "_b" + "_" * (array.ndim - 1)
        )

    return jax.tree.map(split, batch)


def _merge(part: Any) -> Any:
    """Merges the results of all micro-batches. Joins an array [parts, rows, ...] to [parts · rows, ...], in the row
    order of the whole batch. Adds up the micro-batches of a `Mean`.
    """
    if is_mean(part):
        return jax.tree.map(lambda array: array.sum(0), part)
    return part.swapaxes(0, 1).reshape(-1, *part.shape[2:])
