"""Determines the training state, and the state of the data pipeline, from which training starts."""

import dataclasses
import functools

import jax
import numpy as np

from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.progress import phase
from jaxformer.runs.folder import DAMAGED
from jaxformer.training import forking, warm_start
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.damage import first_good
from jaxformer.training.state import TrainState, abstract_state, copied, init_state, split_frozen


@phase("initialising the state")
def restore_or_init(
    saved: Checkpoints, experiment: Experiment, mesh: jax.sharding.Mesh
) -> tuple[TrainState, np.ndarray, str]:
    """Returns the training state, the state of the data pipeline, int32 [batch, S], and a message about where they come
    from, which may be empty.

    Both states come from the newest undamaged checkpoint. If there is no checkpoint, they come from the run
    `experiment.fork`. Without such a run they are new, with parameters from `experiment.init` if it is set.
    """
    abstract, lanes = abstract_state(experiment, mesh), loader.initial_state(experiment.data)
    if saved.latest is not None:
        trees = {**abstract.trees(), "lanes": {"lanes": replicated(lanes.shape, lanes.dtype, mesh)}}
        step, restored, damaged = first_good(saved.steps, functools.partial(saved.restore, trees))
        message = "\n".join(f"{line}; resuming from step {step}, and keeping it in {DAMAGED}/" for line in damaged)
        return TrainState.from_trees(restored), np.asarray(restored["lanes"]["lanes"]), message
    if experiment.fork is not None:
        fork = forking.fork_from(experiment, mesh)
        return fork.state, fork.lanes, fork.summary
    state = init_state(experiment, abstract)
    if experiment.init is None:
        return state, lanes, ""
    params = state.params if experiment.lora is None else state.params["base"]
    start = warm_start.start_from(experiment.init, experiment.model, params, mesh)
    params = start.params if experiment.lora is None else state.params | {"base": start.params}
    trained, _ = split_frozen(experiment, params)
    average = None if state.average is None else copied(trained)
    reference = None if state.reference is None else copied(start.params)
    return dataclasses.replace(state, params=params, average=average, reference=reference), lanes, start.summary
