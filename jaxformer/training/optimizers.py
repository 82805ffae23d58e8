"""Optimizers and learning rate schedules: configs from which Optax transformations are created.

Some optimizers treat kernels of linear layers as matrices. Which parameters are kernels, and which axes they have, is
recorded when parameters are initialised (see `parallel.metadata`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.parameter_paths import check_pattern, decay_mask, is_embedding, map_paths
from jaxformer.training.matrix_updates import (
    Infos,
    dimension_numbers,
    limit_by_layer,
    muon_labels,
    on_matrices,
    scale_to_adamw,
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the run: a linear warm-up from 0, followed by a decay."""

    peak: float = 1e-4
    """Peak learning rate, reached at the end of the warm-up."""
    warmup: int = 0
    """Number of warm-up steps."""
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    """Shape of the decay after the warm-up. inverse_sqrt (Vaswani et al. 2017) needs a warm-up. linear and cosine end
    at the last step of the run, so continuing a run with another number of steps changes its learning rate, which is
    reported.
    """
    end: float = 0.0
    """Final learning rate of the decays `linear` and `cosine`, as a fraction of the peak."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("optimizer.schedule.peak", self.peak, 0)
        fields.at_least("optimizer.schedule.warmup", self.warmup, 0)
        fields.within("optimizer.schedule.end", self.end, 0, 1)
        if self.decay == "inverse_sqrt" and self.warmup < 1:
            raise InputError(f"optimizer.schedule.warmup={self.warmup}: expected at least 1 for inverse_sqrt")
        if self.decay in ("constant", "inverse_sqrt") and self.end:
            raise InputError(f"optimizer.schedule.end={self.end}: expected 0 with decay={self.decay}")

    def __call__(self, steps: int) -> Callable[[jax.typing.ArrayLike], jax.Array]:
        """Returns the learning rate as a function of the number of updates done, for a run of `steps` updates.

        Update 0 of a warm-up has rate 0, update `warmup` has the peak rate, and update `steps` would have the final
        rate `end`. A warm-up longer than the run is cut off, so that a config can be tried for a few steps.
        """

        def rate(step: jax.typing.ArrayLike) -> jax.Array:
            step = jnp.asarray(step, jnp.float32)
            progress = jnp.clip((step - self.warmup) / max(1, steps - self.warmup), 0, 1)
            match self.decay:
                case "constant":
                    share = jnp.ones_like(step)
                case "linear":
                    share = 1 - (1 - self.end) * progress
                case "cosine":
                    share = self.end + (1 - self.end) * (1 + jnp.cos(jnp.pi * progress)) / 2
                case "inverse_sqrt":
                    share = jnp.sqrt(self.warmup / jnp.maximum(step, self.warmup))
            return self.peak * share * jnp.minimum(1, step / self.warmup if self.warmup else 1)

        return rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Base class of all optimizers. Use one of its subclasses."""

    schedule: Schedule = Schedule()
    """Learning rate over the steps of the run."""
    weight_decay: float = 0.01
    """Decoupled weight decay, multiplied by the learning rate. Not applied to biases and scales of norms."""
    clip: float | None = 1.0
    """Maximum global norm of the gradient of all trained parameters. If None, gradients are not clipped."""
    accumulate: int = 1
    """Number of micro-batches whose gradients are accumulated for one update."""
    ema: float | None = None
    """Decay of a moving average of the parameters, which evaluation and prediction use in place of the parameters. If
    None, there is no average.
    """
    freeze: tuple[str, ...] = ()
    """Regular expressions. Parameters whose path matches one of them are frozen and have no gradient or optimizer
    state.
    """
    layer_decay: float = 1.0
    """Learning rate of each block, divided by that of the next block towards the output (Clark et al. 2020). Heads have
    the full learning rate, embeddings the lowest.
    """
    offload: bool = False
    """Whether the optimizer state, such as Adam's moments, is stored in host memory between updates. Each update copies
    it to the device and back, which takes time, but it does not occupy device memory together with the activations.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("optimizer.weight_decay", self.weight_decay, 0)
        fields.at_least("optimizer.accumulate", self.accumulate, 1)
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"optimizer.clip={self.clip}: expected above 0, or None")
        fields.within("optimizer.ema", self.ema, 0, 1, below=True)
        fields.within("optimizer.layer_decay", self.layer_decay, 0, 1)
        for pattern in self.freeze:
            check_pattern("optimizer.freeze", pattern)

    def transform(self, steps: int, infos: Infos) -> optax.GradientTransformation:
        """Creates the Optax transformation for the trained parameters: gradient clipping, the update rule of the
        optimizer, and the layer-wise decay of the learning rate.

        Args:
          steps: number of updates in the whole run.
          infos: maps parameter paths to the names of the parameter's axes.
        """
        # Transformations without effect are included too, so that the state has the same form and a fork can change it.
        clip = optax.identity() if self.clip is None else _clip_by_global_norm(self.clip)
        layers = optax.identity() if self.layer_decay == 1 else _scale_by_layer(self.layer_decay, infos)
        return optax.chain(clip, self.rule(self.schedule(steps), infos), layers)

    def rule(self, rate: optax.Schedule, infos: Infos) -> optax.GradientTransformation:
        """Creates the Optax transformation that turns gradients into updates. Each subclass defines its own.

        Args:
          rate: function that takes the number of updates done, and returns the learning rate.
          infos: maps parameter paths to the names of the parameter's axes.
        """
        # Not an abstract class, because `help` shows no fields of an abstract class.
        raise NotImplementedError(f"{type(self).__name__} has no rule of its own")


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). Stores two moments per parameter."""

    b1: float = 0.9
    """Decay of the first moment, the mean of the gradient."""
    b2: float = 0.999
    """Decay of the second moment, the mean square of the gradient."""
    eps: float = 1e-6
    """Constant added to the root of the second moment."""

    def __post_init__(self):
        super().__post_init__()
        _check_moments(self.b1, self.b2, self.eps)

    def rule(self, rate: optax.Schedule, infos: Infos) -> optax.GradientTransformation:
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decay_mask)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion optimizer: updates by the sign of an interpolated momentum (Chen et al. 2023). Stores one moment per
    parameter.

    Needs a learning rate three to ten times lower than AdamW, and a weight decay higher by the same factor.
    """

    b1: float = 0.9
    """Weight of the momentum in the update, which is sign(b1 · momentum + (1 − b1) · gradient)."""
    b2: float = 0.99
    """Decay of the momentum, the moving average of the gradient."""

    def __post_init__(self):
        super().__post_init__()
        _check_moments(self.b1, self.b2)

    def rule(self, rate: optax.Schedule, infos: Infos) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decay_mask)


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor: Adam with a factored second moment (Shazeer & Stern 2018). Its state needs hardly any memory.

    The second moment is stored as row and column means of each layer's matrix. If a kernel has an axis of heads and one
    of head dimensions, they are merged into one axis of the matrix. Matrices with a side below 128 keep the whole
    second moment.
    """

    decay: float = 0.8
    """Exponent that sets the decay rate of the second moment: 1 − t^−decay at update t."""
    relative: bool = True
    """Whether updates are multiplied by the root mean square of the parameter, so that the learning rate is relative to
    the parameter's size.
    """
    threshold: float = 1.0
    """Maximum root mean square of an update, before it is multiplied by the learning rate."""
    momentum: float | None = None
    """Decay of the moving average of the updates. It needs memory for one moment per parameter. If None, there is no
    momentum.
    """

    def __post_init__(self):
        super().__post_init__()
        fields.within("optimizer.decay", self.decay, 0, 1)
        fields.within("optimizer.momentum", self.momentum, 0, 1, below=True)
        if not self.threshold > 0:
            raise InputError(f"optimizer.threshold={self.threshold}: expected above 0")

    def rule(self, rate: optax.Schedule, infos: Infos) -> optax.GradientTransformation:
        return optax.chain(
            on_matrices(optax.scale_by_factored_rms(decay_rate=self.decay), infos),
            limit_by_layer(self.threshold, self.relative, infos),
            optax.identity() if self.momentum is None else optax.ema(self.momentum, debias=False),
            optax.add_decayed_weights(self.weight_decay, decay_mask),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon: orthogonalised momentum (Jordan 2024) for the kernels of the blocks, and AdamW for all other parameters.

    Updates are scaled to the usual size of AdamW updates (Liu et al. 2025), so that both use the same learning rate,
    in the range that suits AdamW.
    """

    momentum: float = 0.95
    """Decay of the Nesterov momentum that is orthogonalised."""
    b1: float = 0.9
    """Decay of AdamW's first moment, the mean of the gradient."""
    b2: float = 0.999
    """Decay of AdamW's second moment, the mean square of the gradient."""
    eps: float = 1e-6
    """Constant added to the root of AdamW's second moment."""

    def __post_init__(self):
        super().__post_init__()
        fields.within("optimizer.momentum", self.momentum, 0, 1, below=True)
        _check_moments(self.b1, self.b2, self.eps)

    def rule(self, rate: optax.Schedule, infos: Infos) -> optax.GradientTransformation:
        orthogonal = optax.chain(
            optax.contrib.scale_by_muon(beta=self.momentum, weight_dimension_numbers=dimension_numbers(infos)),
            scale_to_adamw(infos),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        adamw = optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decay_mask)
        return optax.partition({"orthogonal": orthogonal, "adamw": adamw}, muon_labels(infos))


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    def clip(updates, params):
        # Uses one factor for all leaves. Optax's own clipping selects leaf by leaf, and XLA on CPU then keeps a clipped
        # copy of everything, which makes the whole update twice as slow.
        factor = jnp.minimum(1, limit / optax.tree.norm(updates))
        return jax.tree.map(lambda update: update * factor, updates)

    return optax.stateless(clip)


def _scale_by_layer(decay: float, infos: Infos) -> optax.GradientTransformation:
    def scale(path, update, depth):
        if infos[path].is_stacked:
            powers = decay ** jnp.arange(len(update), 0, -1, dtype=update.dtype)
            return update * powers.reshape(-1, *[1] * (update.ndim - 1))
        return update * decay ** (depth + 1) if is_embedding(path) else update

    def scaled(updates, _):
        depths = map_paths(lambda path, update: len(update) if infos[path].is_stacked else 0, updates)
        return map_paths(functools.partial(scale, depth=max(jax.tree.leaves(depths))), updates)

    return optax.stateless(scaled)


def _check_moments(b1: float, b2: float, eps: float = 0.0) -> None:
    fields.within("optimizer.b1", b1, 0, 1, below=True)
    fields.within("optimizer.b2", b2, 0, 1, below=True)
    fields.at_least("optimizer.eps", eps, 0)
