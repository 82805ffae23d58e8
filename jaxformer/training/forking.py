"""Forks a run: continues training from another run's state under other settings, and reports the changed settings."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from jaxformer import differences as configs
from jaxformer import storage
from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.data.sources.fingerprints import fingerprints
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.runs import data_record, writing
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.runs.parameters import checkpoint_order
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.damage import first_good
from jaxformer.training.state import TrainState, abstract_state, copied, separate_reference, split_frozen

NOT_AFFECTING_BATCHES = ("data.validation", "data.workers", "data.prefetch", "data.timeout")
"""Fields of the experiment below `data` that do not affect the training batches."""
UNLISTED = ("fork", "fork_step", "init")
"""Fields of the experiment that are not reported as changed, because they differ in every fork."""
MOST_LISTED = 10
"""Maximum number of changed settings that are reported."""


@dataclasses.dataclass(frozen=True)
class Fork:
    """State from which a forked run starts: that of the other run."""

    state: TrainState
    """Training state, on the mesh."""
    lanes: np.ndarray
    """State of the data pipeline, int32 [batch, S], with S integers per batch row."""
    summary: str
    """Message for the log: the run and the step that the state is read from, and each setting that differs on a line of
    its own.
    """


def fork_from(experiment: Experiment, mesh: jax.sharding.Mesh) -> Fork:
    """Reads the state of the run `experiment.fork`, for an experiment with other settings.

    Args:
      experiment: experiment of the fork, with `fork` set.
      mesh: mesh for the state.

    Raises:
      InputError: If the run cannot be read, has another model, tokenizer or optimizer, or has already done
        `experiment.steps` steps.
    """
    if experiment.fork is None:
        raise ValueError("fork=None: expected a run's folder")
    folder = storage.path(experiment.fork)
    other = _check_same_state(experiment, writing.read_experiment(folder, known=experiment))
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    order = checkpoint_order(
        folder, checkpoints, other.checkpoint, None, experiment.fork_step
    )  # The latest, not the best.
    wanted = abstract_state(experiment, mesh)
    averaged = wanted.average is not None and other.optimizer.ema is not None
    places = loader.initial_state(other.data)
    trees = wanted.trees() | {"lanes": {"lanes": replicated(places.shape, places.dtype, mesh)}}
    trees |= {} if averaged else {"average": None}
    if experiment.objective.needs_reference and not other.objective.needs_reference and wanted.reference is None:
        # The reference model would be the frozen base, without the adapters that the training starts from.
        raise InputError(f"fork={folder}: a reference model would not contain its adapters; init={folder} merges them")
    compared = wanted.reference is not None and abstract_state(other, mesh).reference is not None
    trees |= {} if compared else {"reference": None}
    try:
        step, restored, damaged = first_good(order, functools.partial(checkpoints.restore, trees))
    except InputError as error:
        raise InputError(f"fork={folder}: {error}; init={folder} would take only its parameters") from error
    if step >= experiment.steps:
        raise InputError(f"steps={experiment.steps}: fork={folder} is at step {step} already; expected more steps")
    state = TrainState.from_trees(restored)
    if wanted.average is not None and not averaged:
        trained, _ = split_frozen(experiment, state.params)
        state = dataclasses.replace(state, average=copied(trained))
    if wanted.reference is not None and not compared:  # The run itself is the reference model.
        state = dataclasses.replace(state, reference=copied(separate_reference(experiment, state.params)))
    moved = _other_batches(other, experiment) or _other_data(folder, experiment)
    lanes = loader.initial_state(experiment.data) if moved else np.asarray(restored["lanes"]["lanes"])
    summary = [f"{line}; using step {step}" for line in damaged]
    summary += [f"continues from step {step:,} of {folder}", *_changes(other, experiment)]
    summary += [f"the data starts from its beginning: {moved[0]}"] if moved else []
    return Fork(state, lanes, "\n".join([*summary, *rate_change(other, experiment, state)]))


def rate_change(before: Experiment, now: Experiment, state: TrainState) -> list[str]:
    """Returns a list with one line that describes how new settings change the learning rate of the next update. The
    list is empty if they do not change it.
    """
    updates = int(state.step) - int(state.skipped)
    old, new = (float(each.optimizer.schedule(each.steps)(updates)) for each in (before, now))
    if old == new:
        return []
    why = f"steps: {before.steps:,} before, {now.steps:,} now: " if before.steps != now.steps else ""
    shape = now.optimizer.schedule.decay
    return [f"{why}the learning rate changes from {old:.3g} to {new:.3g}; the {shape} schedule continues from there"]


def _check_same_state(experiment: Experiment, other: Experiment) -> Experiment:
    """Returns `other`, the experiment of the run to fork. Raises InputError if its model or tokenizer differs from that
    of `experiment`.
    """
    changed = differences(other.model, experiment.model)
    changed += configs.differences(other.tokenizer, experiment.tokenizer, "tokenizer")
    if changed:
        raise InputError(f"fork={experiment.fork}: {changed[0]}; a fork keeps the model and the tokenizer")
    return other


def _other_batches(other: Experiment, experiment: Experiment) -> list[str]:
    """Returns one line for each difference between two experiments that changes the training batches."""
    seeds = [f"seed: {other.seed} in the run, {experiment.seed} now"] if other.seed != experiment.seed else []
    found = configs.differences(other.data, experiment.data, "data")
    return seeds + [str(difference) for difference in found if not difference.within(*NOT_AFFECTING_BATCHES)]


def _other_data(folder: Path, experiment: Experiment) -> list[str]:
    """Returns one line for each training source whose documents have changed since the run in `folder` was trained on
    them.
    """
    record = data_record.read_record(folder)
    now = {} if record is None else fingerprints(experiment.data.train.open(), loader.TRAIN)
    return [f"{name} {change}" for name, change in record.changes(now).items()] if record else []


def _changes(other: Experiment, experiment: Experiment) -> list[str]:
    """Returns one line for each setting in which the experiment differs from `other`, that of the forked run, up to
    `MOST_LISTED` lines. If there are more, a last line states their number.
    """
    lines = [str(found) for found in configs.differences(other, experiment) if found.path not in UNLISTED]
    more = [f"and {len(lines) - MOST_LISTED} more settings"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more
