"""Reads the parameters of a run from its checkpoints, on a mesh that fits the available devices."""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxformer import config
from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.evaluations import BestMetric
from jaxformer.parallel import sharding
from jaxformer.parameter_paths import join
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.training import state
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.damage import Damaged, first_good

TRIES, PAUSE = 10, 0.3
"""Maximum number of attempts to read a checkpoint while others are removed, and the seconds between two of them."""


def read_params(
    folder: Path,
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    in_memory: bool = True,
    step: int | None = None,
) -> tuple[int, Any]:
    """Reads the model's parameters from a checkpoint of a run, or their moving average if there is one.

    Args:
      folder: the run's folder.
      experiment: experiment of the run.
      mesh: mesh for the parameters.
      in_memory: whether to read the arrays now. If False, they are `StoredArray`s, which are read when they are used.
        With LoRA, the arrays are always read now.
      step: step of the checkpoint. If None, the best checkpoint if `checkpoint.best` is set, otherwise the latest one.

    Returns:
      The step of the checkpoint, and the parameters.
    """
    stored = state.abstract_state(experiment, mesh)
    covered = stored.average is not None and join(stored.average, stored.params) is stored.average
    trees = {"params": None if covered else stored.params, "average": stored.average}

    def attempt() -> tuple[int, dict[str, Any], list[str]]:
        checkpoints = Checkpoints(folder / CHECKPOINTS)
        read = checkpoints.restore if in_memory or experiment.lora is not None else checkpoints.stored
        order = checkpoint_order(folder, checkpoints, experiment.checkpoint, experiment.best_metric, step)
        return first_good(order, functools.partial(read, trees))

    used, restored, damaged = _beside_a_writer(folder, attempt)
    for line in damaged:
        warnings.warn(f"{line}; using step {used}", stacklevel=3)
    return used, used_params(experiment, join(restored["average"] or {}, restored["params"] or {}), mesh)


def read_reference(folder: Path, experiment: Experiment, mesh: jax.sharding.Mesh, step: int) -> Any:
    """Reads the parameters of the reference model from a checkpoint of a run, for an objective that needs one
    (`Objective.needs_reference`).

    Args:
      folder: the run's folder.
      experiment: experiment of the run.
      mesh: mesh for the parameters.
      step: step of the checkpoint.
    """
    stored = state.abstract_state(experiment, mesh)
    params = stored.params if stored.reference is None else None
    restored = Checkpoints(folder / CHECKPOINTS).restore({"params": params, "reference": stored.reference}, step)
    return state.reference_params(experiment, restored["params"], restored["reference"])


def _beside_a_writer(
    folder: Path, attempt: Callable[[], tuple[int, dict[str, Any], list[str]]]
) -> tuple[int, dict[str, Any], list[str]]:
    """Calls `attempt`, which reads a checkpoint, and returns its result. If checkpoints were damaged, and the list of
    checkpoints changes in the meantime, a training is replacing them: then calls it again.
    """
    for _ in range(TRIES if jax.process_count() == 1 else 0):
        before, found, failed = _names(folder), None, None
        try:
            found = attempt()
        except (Damaged, FileNotFoundError) as error:
            failed = error
        if found and not found[2]:
            return found
        time.sleep(PAUSE)  # A checkpoint is removed file by file.
        if _names(folder) == before:
            if failed or not found:
                raise failed or AssertionError
            return found
    return attempt()


def _names(folder: Path) -> list[str]:
    """Returns the sorted names of everything in the folder of a run's checkpoints."""
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def checkpoint_order(
    folder: Path,
    checkpoints: Checkpoints,
    settings: config.Checkpoint,
    best: BestMetric | None,
    step: int | None = None,
) -> list[int]:
    """Returns the steps of a run's checkpoints in the order in which to try to read them: best first if a metric `best`
    is given, otherwise newest first. If `step` is given, returns only this step.

    Raises:
      InputError: If there is no checkpoint, or none of that step.
    """
    steps = checkpoints.best_first(best) if best else checkpoints.steps
    if not steps:
        raise no_checkpoint(folder, settings)
    if step is None:
        return steps
    if step not in steps:
        known = f"are {', '.join(map(str, sorted(steps)))}" if len(steps) > 1 else f"is only {steps[0]}"
        raise InputError(f"{folder}: no checkpoint of step {step}; there {known}")
    return [step]


def no_checkpoint(folder: Path, settings: config.Checkpoint) -> InputError:
    """Creates the InputError for a run that has no checkpoint yet."""
    return InputError(
        f"{folder}: the run has no checkpoint yet; one is written every {settings.every:,} steps and at its end"
    )


def used_params(experiment: Experiment, params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the model's parameters on the mesh, given the parameters of the run. With LoRA, merges the adapters into
    the kernels. Otherwise, both are the same.
    """
    if experiment.lora is None:
        return params
    shardings = sharding.shardings_of(state.abstract_params(experiment, mesh))
    return jax.jit(experiment.lora.merge, out_shardings=shardings)(params)


def mesh_for(experiment: Experiment, devices: int) -> sharding.Mesh:
    """Returns the experiment's own mesh config if it fits the number of available devices and the batch size.
    Otherwise, returns a data-parallel mesh config whose size divides both.
    """
    with contextlib.suppress(InputError):
        sizes = experiment.mesh.sizes(devices)
        if experiment.data.batch % math.prod(sizes[name] for name in sharding.RULES["batch"]) == 0:
            return experiment.mesh
    return sharding.Mesh(data=math.gcd(experiment.data.batch, devices))
