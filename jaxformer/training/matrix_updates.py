"""Parameter updates of Muon and Adafactor that treat the kernel of each linear layer as a matrix."""

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
"""Maps parameter paths to the names of the parameter's axes (`ParameterInfo`)."""


def muon_labels(infos: Infos) -> Callable[[Any], Any]:
    """Returns a function that maps a tree of parameters to a tree of labels: `orthogonal` for kernels of blocks, which
    Muon updates, and `adamw` for all other parameters.
    """

    def label(path, _):
        return "orthogonal" if infos[path].is_stacked and infos[path].is_kernel else "adamw"

    return lambda params: map_paths(label, params)


def dimension_numbers(infos: Infos) -> Callable[[optax.Updates], Any]:
    """Returns a function that maps a tree of kernels to a tree of Optax `MuonDimensionNumbers`. These define which axes
    of a kernel are the rows, and which are the columns, of the matrix that Muon orthogonalises.
    """

    def numbers(path, _):
        return optax.contrib.MuonDimensionNumbers(infos[path].rows, infos[path].columns)

    return lambda updates: map_paths(numbers, updates)


def scale_to_adamw(infos: Infos) -> optax.GradientTransformation:
    """Returns a transformation that scales orthogonal updates so that their root mean square is that of typical AdamW
    updates (Liu et al. 2025, §2.2).
    """

    def scale(path, update):
        sides = infos[path].matrix_shape(update.shape)[-2:]
        return 0.2 * math.sqrt(max(sides)) * update

    return optax.stateless(lambda updates, _: map_paths(scale, updates))


def on_matrices(inner: optax.GradientTransformation, infos: Infos) -> optax.GradientTransformation:
    """Returns a transformation that applies `inner` to kernels reshaped to [layers, rows, columns]. An optimizer such
    as Adafactor then factors the matrix of each layer.

    The statistics of `inner` have no named axes and are replicated on every device, because they are small.
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
    """Returns a transformation that limits the root mean square of a parameter's update to `threshold`, separately for
    each layer and each expert.

    If `relative`, it also multiplies the update by the root mean square of the parameter.
    """

    def limit(path, update, param):
        axes = tuple(range(infos[path].batch, update.ndim))

        def size(x):
            return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))

        update = update / jnp.maximum(1, size(update) / threshold)
        # A parameter that is initialised to zero must still be able to change.
        return update * jnp.maximum(size(param), 1e-3) if relative else update

    return optax.stateless(lambda updates, params: map_paths(limit, updates, params))
