"""Updates of whole matrices, which Muon and Adafactor are made of: each kernel counts as the matrix it applies."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxformer.parallel.metadata import ParameterInfo
from jaxformer.parameter_paths import map_paths

Infos = Mapping[str, ParameterInfo]
"""The axes of each parameter, by its path."""


def muon_labels(infos: Infos) -> Callable[[Any], Any]:
    """Labels `orthogonal` for each kernel of the blocks, `adamw` for everything else."""

    def label(path, _):
        return "orthogonal" if infos[path].is_stacked and infos[path].is_kernel else "adamw"

    return lambda params: map_paths(label, params)


def dimension_numbers(infos: Infos) -> Callable[[optax.Updates], Any]:
    """The axes of each kernel's matrix, as Optax describes them."""

    def numbers(path, _):
        return optax.contrib.MuonDimensionNumbers(infos[path].rows, infos[path].columns)

    return lambda updates: map_paths(numbers, updates)


def scale_to_adamw(infos: Infos) -> optax.GradientTransformation:
    """Scales orthogonal matrices to the root mean square of AdamW's updates (Liu et al. 2025, §2.2)."""

    def scale(path, update):
        sides = infos[path].matrix_shape(update.shape)[-2:]
        return 0.2 * math.sqrt(max(sides)) * update

    return optax.stateless(lambda updates, _: map_paths(scale, updates))


def on_matrices(inner: optax.GradientTransformation, infos: Infos) -> optax.GradientTransformation:
    """Applies `inner` to kernels as [layers, rows, columns], so that it factors each layer's matrix.

    Its statistics carry no axes, as they are small: every device keeps them whole.
    """

    def flat(tree):
        return map_paths(lambda path, leaf: leaf.reshape(infos[path].matrix_shape(leaf.shape)), tree)

    def init(params):
        return inner.init(flat(nn.meta.unbox(params)))

    def update(updates, state, params=None):
        new, state = inner.update(flat(updates), state, flat(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), new, updates), state

    return optax.GradientTransformation(init, update)


def limit_by_layer(threshold: float, relative: bool, infos: Infos) -> optax.GradientTransformation:
    """Limits the root mean square of the update of each layer, and of each expert of it.

    `relative` multiplies it by the parameter's.
    """

    def limit(path, update, param):
        axes = tuple(range(infos[path].batch, update.ndim))

        def size(x):
            return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))

        update = update / jnp.maximum(1, size(update) / threshold)
        # A parameter that is initialised to zero must still be able to leave it.
        return update * jnp.maximum(size(param), 1e-3) if relative else update

    return optax.stateless(lambda updates, params: map_paths(limit, updates, params))
