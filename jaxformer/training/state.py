"""The training state and its shardings.

Some parameters may be frozen (`optimizer.freeze`, `lora`): they have no gradient, no optimizer state and no average.
With LoRA the parameters of a run are not yet those of its model: `model_params` makes them.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.config import Experiment
from jaxformer.data.pipeline.lanes import empty_batch
from jaxformer.errors import InputError
from jaxformer.parallel import metadata, sharding
from jaxformer.parameter_paths import found_in, frozen_mask, join, split

LORA = 1
"""Folded into the key of the parameters, for those of LoRA."""


@flax.struct.dataclass
class TrainState:
    """The state of training after `step` steps."""

    step: jax.Array
    """int32: batches seen."""
    params: Any
    """Parameters, float32, those that are held too."""
    optimizer: Any
    """Optax's state, of the parameters that train."""
    average: Any
    """Moving average of the parameters that train, or None."""
    skipped: jax.Array
    """int32: steps whose gradient was not finite, and which changed nothing else."""
    skipped_in_a_row: jax.Array
    """int32: those since the last good step."""

    @property
    def best_params(self) -> Any:
        """The parameters for evaluation and prediction."""
        return self.params if self.average is None else join(self.average, self.params)

    def trees(self) -> dict[str, Any]:
        """The state as the separate trees of a checkpoint, so that the parameters can be read alone."""
        counts = {"step": self.step, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return {"params": self.params, "average": self.average, "training": {"optimizer": self.optimizer, **counts}}

    @classmethod
    def from_trees(cls, trees: dict[str, Any]) -> "TrainState":
        """The state that `trees` came from."""
        return cls(params=trees["params"], average=trees["average"], **trees["training"])


def init_params(experiment: Experiment, key: jax.Array) -> Any:
    """Parameters drawn at random, each in a box that names its axes."""
    rows = experiment.data.task.row
    batch = {name: jnp.zeros((1, feature.capacity, *feature.shape), feature.dtype) for name, feature in rows.items()}
    # Segments and positions come from the lanes. No parameter's shape depends on them.
    return experiment.model.init(key, **experiment.objective.inputs(batch))["params"]


def trained_and_held(experiment: Experiment, params: Any) -> tuple[Any, Any]:
    """The parameters of a run as two trees: those that train, and those that are held.

    Raises:
      InputError: `optimizer.freeze` names no parameter, or leaves none to train.
    """
    patterns, lora = experiment.optimizer.freeze, experiment.lora
    if lora is not None:
        return split(params, lora.is_held)
    if not patterns:
        return params, {}
    frozen_mask(params, patterns)  # Raises InputError for a bad pattern.
    return split(params, lambda path: found_in(path, patterns))


def model_params(experiment: Experiment, params: Any) -> Any:
    """The parameters of the model, of those of the run."""
    return params if experiment.lora is None else experiment.lora.merge(params)


def _run_params(experiment: Experiment, key: jax.Array) -> Any:
    """The boxed parameters of a run: the model's, and with LoRA `{"base": the model's, "lora": A and B}`."""
    params = init_params(experiment, key)
    if experiment.lora is None:
        return params
    return {"base": params, "lora": experiment.lora.init(jax.random.fold_in(key, LORA), params)}


def boxed_params(experiment: Experiment) -> Any:
    """The shapes of the parameters of a run, each in a box that names its axes; computes nothing."""
    return jax.eval_shape(lambda: _run_params(experiment, jax.random.key(0)))


def parameter_info(experiment: Experiment) -> dict[str, metadata.ParameterInfo]:
    """The axes of each parameter of a run, by its path; computes nothing."""
    return metadata.parameter_info(boxed_params(experiment))


def create(experiment: Experiment) -> TrainState:
    """The state before the first step, its arrays in boxes that name their axes."""
    key = jax.random.key(experiment.seed)
    params = _run_params(experiment, key)
    zero, (trained, _) = jnp.zeros((), jnp.int32), trained_and_held(experiment, params)
    optimizer = experiment.optimizer.transform(experiment.steps, metadata.parameter_info(params)).init(trained)
    average = None if experiment.optimizer.ema is None else trained
    return TrainState(zero, params, optimizer, average, zero, zero)


def abstract_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """The shapes and shardings of the state; computes nothing."""
    boxed = jax.eval_shape(lambda: create(experiment))
    with sharding.overridden(experiment.mesh):
        return _with_shardings(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))


def abstract_params(experiment: Experiment, mesh: jax.sharding.Mesh) -> Any:
    """The shapes and shardings of the model's parameters; computes nothing."""
    boxed = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
    with sharding.overridden(experiment.mesh):
        return _with_shardings(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))


def abstract_batch(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of a batch of the experiment's rows."""
    rows = sharding.batch_sharding(mesh)
    batch = jax.eval_shape(lambda: empty_batch(experiment.data.batch, experiment.data.task.row))
    return _with_shardings(batch, dict.fromkeys(batch, rows))


def check_axes(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError where an axis of the mesh is larger than a dimension of the model that it splits.

    The heads of keys are left out: attention repeats them where there are fewer.
    """
    boxed = boxed_params(experiment)
    rules = {**sharding.RULES, **dict(experiment.mesh.rules)}
    for box in jax.tree.leaves(boxed, is_leaf=metadata.is_boxed):
        for letter, size in zip(box.letters, box.value.shape, strict=True):
            name = sharding.AXES[letter]
            ways = {axis: mesh.shape.get(axis, 1) for axis in rules[name]}
            for axis, parts in ways.items():
                if parts > size and name != "kv_heads":
                    raise InputError(f"mesh.{axis}={parts} is larger than what it splits: the model's {name} of {size}")


def init_state(experiment: Experiment, abstract: TrainState) -> TrainState:
    """The state before the first step, each device making its own part; the same on every mesh."""
    return jax.jit(lambda: nn.unbox(create(experiment)), out_shardings=sharding.shardings_of(abstract))()


def copied(tree: Any) -> Any:
    """Arrays of their own with the same values and shardings: a step may donate these and those."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=sharding.shardings_of(tree))(tree)


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )
