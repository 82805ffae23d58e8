"""What training carries from step to step, and how it comes to lie on the mesh."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer import sharding
from jaxformer.config import Experiment


@flax.struct.dataclass
class TrainState:
    """The state of training after `step` steps."""

    step: jax.Array
    """int32: batches seen."""
    params: Any
    """Parameters, float32."""
    optimizer: Any
    """Optax's state."""
    average: Any
    """Moving average of the parameters, or None."""
    skipped: jax.Array
    """int32: steps whose gradient was not finite, and which changed nothing else."""
    skipped_in_a_row: jax.Array
    """int32: those since the last good step."""

    @property
    def best_params(self) -> Any:
        """What to evaluate and to predict with."""
        return self.params if self.average is None else self.average

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
    # Segments and positions are made by the lanes, and a parameter's shape depends on none of them.
    return experiment.model.init(key, **experiment.objective.inputs(batch))["params"]


def create(experiment: Experiment) -> TrainState:
    """The state before the first step, its arrays in boxes that name their axes."""
    params = init_params(experiment, jax.random.key(experiment.seed))
    zero = jnp.zeros((), jnp.int32)
    optimizer = experiment.optimizer.transform(experiment.steps).init(params)
    average = None if experiment.optimizer.ema is None else params
    return TrainState(zero, params, optimizer, average, zero, zero)


def abstract_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """The shapes and shardings of the state; computes nothing."""
    boxed = jax.eval_shape(lambda: create(experiment))
    return _with_shardings(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))


def abstract_params(experiment: Experiment, mesh: jax.sharding.Mesh) -> Any:
    """The shapes and shardings of the parameters; computes nothing."""
    boxed = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
    return _with_shardings(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))


def init_state(experiment: Experiment, abstract: TrainState) -> TrainState:
    """The state before the first step, each device making its own part; the same on every mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: nn.unbox(create(experiment)), out_shardings=shardings)()


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )
