"""The training state: step, parameters, optimizer state and moving average, and their shardings.

Some parameters may be frozen (`optimizer.freeze`, `lora`): they have no gradient, no optimizer state and no moving
average. With LoRA, the parameters of a run are the model's parameters and the adapters; `model_params` merges them.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.config import Experiment
from jaxformer.data.pipeline.lanes import empty_batch
from jaxformer.errors import InputError
from jaxformer.models.base import Model
from jaxformer.parallel import host_memory, metadata, sharding
from jaxformer.parallel.parameter_shards import state_shardings
from jaxformer.parameter_paths import found_in, frozen_mask, join, split

LORA = 1
"""Number that is folded into the random key of the model's parameters to get the random key of the LoRA adapters."""


@flax.struct.dataclass
class TrainState:
    """State of a training after `step` steps: parameters, optimizer state and moving average."""

    step: jax.Array
    """Number of training steps done, int32 scalar. Includes skipped steps."""
    params: Any
    """Parameters of the run, float32, including frozen parameters."""
    optimizer: Any
    """State of the Optax optimizer for the trained parameters. With `optimizer.offload`, in host memory."""
    average: Any
    """Moving average of the trained parameters. None if the run does not compute one (`optimizer.ema`)."""
    skipped: jax.Array
    """Number of skipped steps, int32 scalar. A step is skipped if its gradient is not finite."""
    skipped_in_a_row: jax.Array
    """Number of consecutive skipped steps up to now, int32 scalar."""
    reference: Any = None
    """Parameters of the reference model, with which the objective compares the model (`Objective.needs_reference`).
    None if it does not, or if the frozen parameters of a run with LoRA are those of the reference model.
    """

    @property
    def best_params(self) -> Any:
        """Parameters for evaluation and prediction: the moving average if there is one, otherwise `params`."""
        return self.params if self.average is None else join(self.average, self.params)

    def trees(self) -> dict[str, Any]:
        """Splits the state into trees for a checkpoint: `params`, `average`, `reference`, and `training` with the
        optimizer state and step counts. Each can be read without the others.
        """
        counts = {"step": self.step, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        training = {"optimizer": self.optimizer, **counts}
        return {"params": self.params, "average": self.average, "reference": self.reference, "training": training}

    @classmethod
    def from_trees(cls, trees: dict[str, Any]) -> "TrainState":
        """Creates the state from a dict of trees, the inverse of `trees`."""
        names = ("params", "average", "reference")
        return cls(**{name: trees[name] for name in names}, **trees["training"])


def init_params(experiment: Experiment, key: jax.Array) -> Any:
    """Initialises the model's parameters randomly. Each parameter is wrapped in a `metadata.Boxed`, which names its
    axes.
    """
    rows = experiment.data.task.row
    batch = {name: jnp.zeros((1, feature.capacity, *feature.shape), feature.dtype) for name, feature in rows.items()}
    # Omits segments and positions, which the data pipeline adds, because no parameter shape depends on them.
    return _init_model(experiment.model, key, experiment.objective.inputs(batch))


@functools.partial(jax.jit, static_argnums=0)
def _init_model(model: Model, key: jax.Array, inputs: dict[str, Any]) -> Any:
    """Jitted, so that a model is traced once, although several functions here need its parameters or their shapes."""
    return model.init(key, **inputs)["params"]


def count(tree: Any) -> int:
    """Returns the number of elements of all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def split_frozen(experiment: Experiment, params: Any) -> tuple[Any, Any]:
    """Splits the parameters of a run into two trees: those that are trained, and those that are frozen.

    Raises:
      InputError: If a pattern of `optimizer.freeze` matches no parameter, or all parameters are frozen.
    """
    patterns, lora = experiment.optimizer.freeze, experiment.lora
    if lora is not None:
        return split(params, lora.is_held)
    if not patterns:
        return params, {}
    frozen_mask(params, patterns)  # Raises InputError for a bad pattern.
    return split(params, lambda path: found_in(path, patterns))


def model_params(experiment: Experiment, params: Any) -> Any:
    """Returns the model's parameters, given the parameters of the run. With LoRA, merges the adapters into them.
    Otherwise, both are the same.
    """
    return params if experiment.lora is None else experiment.lora.merge(params)


def separate_reference(experiment: Experiment, params: Any) -> Any:
    """Returns the parameters of the reference model before the first step, given those of the run. None if the
    objective needs no reference model, or if only adapters are trained, so that the run keeps its parameters.
    """
    if not experiment.objective.needs_reference:
        return None
    if experiment.lora is None:
        return params
    trained, _ = split_frozen(experiment, params)
    return params["base"] if "base" in trained else None


def reference_params(experiment: Experiment, params: Any, reference: Any) -> Any:
    """Returns the parameters of the reference model, or None if the objective needs none.

    Args:
      experiment: experiment of the run.
      params: parameters of the run.
      reference: `TrainState.reference`.
    """
    if not experiment.objective.needs_reference or reference is not None:
        return reference
    return params["base"]


def _run_params(experiment: Experiment, key: jax.Array) -> Any:
    """Initialises the parameters of a run: the model's, or with LoRA `{"base": model parameters, "lora": adapters}`."""
    params = init_params(experiment, key)
    if experiment.lora is None:
        return params
    return {"base": params, "lora": experiment.lora.init(jax.random.fold_in(key, LORA), params)}


def boxed_params(experiment: Experiment) -> Any:
    """Returns the shapes and dtypes of the parameters of a run, without computing them. Each parameter is wrapped in a
    `metadata.Boxed`, which names its axes.
    """
    return jax.eval_shape(lambda: _run_params(experiment, jax.random.key(0)))


def parameter_info(experiment: Experiment) -> dict[str, metadata.ParameterInfo]:
    """Returns a dict that maps parameter paths to the names of the parameter's axes (`ParameterInfo`). The parameters
    are not computed.
    """
    return metadata.parameter_info(boxed_params(experiment))


def create(experiment: Experiment) -> TrainState:
    """Creates the training state before the first step. Each parameter is wrapped in a `metadata.Boxed`, which names
    its axes.
    """
    key = jax.random.key(experiment.seed)
    params = _run_params(experiment, key)
    zero, (trained, _) = jnp.zeros((), jnp.int32), split_frozen(experiment, params)
    optimizer = experiment.optimizer.transform(experiment.steps, metadata.parameter_info(params)).init(trained)
    average = None if experiment.optimizer.ema is None else trained
    return TrainState(zero, params, optimizer, average, zero, zero, separate_reference(experiment, params))


def abstract_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the training state with `jax.ShapeDtypeStruct`s in place of arrays: their shapes, dtypes and shardings.
    Nothing is computed.
    """
    boxed = jax.eval_shape(lambda: create(experiment))
    with sharding.use_config(experiment.mesh):
        state = _with_shardings(nn.unbox(boxed), state_shardings(boxed, mesh))
    if not experiment.optimizer.offload:
        return state
    return dataclasses.replace(state, optimizer=host_memory.in_host_memory(state.optimizer))


def abstract_params(experiment: Experiment, mesh: jax.sharding.Mesh) -> Any:
    """Returns the model's parameters as `jax.ShapeDtypeStruct`s: their shapes, dtypes and shardings. Nothing is
    computed.
    """
    boxed = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
    with sharding.use_config(experiment.mesh):
        return _with_shardings(nn.unbox(boxed), state_shardings(boxed, mesh))


def abstract_batch(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a batch as `jax.ShapeDtypeStruct`s: the shapes, dtypes and shardings of its arrays, keyed by name."""
    rows = sharding.batch_sharding(mesh)
    batch = jax.eval_shape(lambda: empty_batch(experiment.data.batch, experiment.data.task.row))
    return _with_shardings(batch, dict.fromkeys(batch, rows))


TOKEN_ARRAYS = {"tokens": "length", "inputs": "input_length"}
"""Maps the names of the token arrays in a batch row to the names of the task fields that set their length."""


def check_axes(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError if a mesh axis is larger than a dimension of a parameter that is sharded over this mesh axis.

    Does not check the dimension of key/value heads, because attention repeats the heads if there are too few.
    """
    boxed = boxed_params(experiment)
    rules = {**sharding.RULES, **dict(experiment.mesh.rules)}
    for box in jax.tree.leaves(boxed, is_leaf=metadata.is_boxed):
        for letter, size in zip(box.letters, box.value.shape, strict=True):
            name = sharding.AXES[letter]
            for axis in rules[name]:
                parts = mesh.shape.get(axis, 1)
                if parts > size and name != "kv_heads":
                    raise InputError(f"mesh.{axis}={parts} is larger than what it splits: the model's {name} of {size}")


def check_positions(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError if the mesh splits sequences along their positions, but this is possible for none of the token
    arrays of a batch row, because their lengths are not divisible by the number of parts.

    If it is possible for some of the token arrays, the others are not split, such as the short targets of an
    encoder–decoder. Patches of images are not split either.
    """
    num_parts, row = sharding.num_parts(mesh, "query_position"), experiment.data.task.row
    fields = {field: row[array].capacity for array, field in TOKEN_ARRAYS.items() if array in row}
    if fields and all(length % num_parts for length in fields.values()):
        field, length = next(iter(fields.items()))
        axes = " × ".join(f"mesh.{axis}" for axis in sharding.rules()["query_position"] if mesh.shape.get(axis, 1) > 1)
        nearest = max(1, round(length / num_parts)) * num_parts
        raise InputError(f"data.task.{field}={length} does not divide into {num_parts} parts ({axes}); {nearest} would")


def init_state(experiment: Experiment, abstract: TrainState) -> TrainState:
    """Computes the state before the first step, sharded over the mesh. The values are the same on every mesh."""
    return jax.jit(lambda: nn.unbox(create(experiment)), out_shardings=sharding.shardings_of(abstract))()


def copied(tree: Any) -> Any:
    """Copies all arrays of a tree, with the same shardings, so that the originals or the copies can be donated."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=sharding.shardings_of(tree))(tree)


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )
