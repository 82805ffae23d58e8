"""Updates of whole matrices, which Muon and Adafactor are made of: every kernel is the matrix that it applies."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxformer.parameter_paths import is_stacked, map_paths, matrix_axes, matrix_shape


def muon_labels(params: Any) -> Any:
    """`orthogonal` for each kernel of the blocks, `adamw` for all else."""

    def label(path, _):
        return "orthogonal" if is_stacked(path) and path.endswith("/kernel") else "adamw"

    return map_paths(label, params)


def dimension_numbers(updates: optax.Updates) -> Any:
    """Which axes of each kernel are its matrix's, as Optax has it."""
    return map_paths(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers(*matrix_axes(path, leaf.ndim)),
        updates,
    )


def scale_to_adamw(path: str, update: jax.Array) -> jax.Array:
    """Orthogonal matrices with the root mean square of AdamW's updates (Liu et al. 2025, §2.2)."""
    rows, columns = (math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path, update.ndim))
    return 0.2 * math.sqrt(max(rows, columns)) * update


def on_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on kernels as [layers, rows, columns]: it factors each layer's matrix, heads or not.

    Its statistics name no axes, as they are small: every device keeps them whole.
    """

    def flat(tree):
        return map_paths(lambda path, leaf: leaf.reshape(matrix_shape(path, leaf.shape)), tree)

    def init(params):
        return inner.init(flat(nn.meta.unbox(params)))

    def update(updates, state, params=None):
        new, state = inner.update(flat(updates), state, flat(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), new, updates), state

    return optax.GradientTransformation(init, update)


def limit_by_layer(threshold: float, relative: bool) -> optax.GradientTransformation:
    """Limits the root mean square of a layer's update; `relative` multiplies by its parameter's."""

    def limit(path, update, param):
        axes = tuple(range(int(is_stacked(path)), update.ndim))

        def size(x):
            return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))

        update = update / jnp.maximum(1, size(update) / threshold)
        # Parameters that begin at zero must still be able to leave it.
        return update * jnp.maximum(size(param), 1e-3) if relative else update

    return optax.stateless(lambda updates, params: map_paths(limit, updates, params))
