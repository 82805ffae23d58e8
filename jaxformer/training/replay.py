"""Rebuilds the batch of any step of a run, decodes it, and computes the loss of each of its rows."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.data.pipeline.lanes import PACKED_KEYS
from jaxformer.data.sources.fingerprints import fingerprints
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics.means import with_auxiliary
from jaxformer.objectives.base import BatchObjective
from jaxformer.parallel import sharding
from jaxformer.progress import phase
from jaxformer.runs import data_record, writing
from jaxformer.runs.files import read_tokenizer
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.runs.history import SKIPPED, read_history
from jaxformer.runs.parameters import mesh_for, used_params
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.damage import Damaged, first_good
from jaxformer.training.state import abstract_state, reference_params

MOST_NUMBERS = 12
"""Maximum number of values to print of an array that does not contain tokens."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a rebuilt batch, with its loss and a description of its content."""

    index: int
    """Index of the row in the global batch."""
    loss: float | None
    """Loss of this row, computed without the other rows and without dropout. None if the objective compares the rows of
    a batch, or the run has no checkpoint.
    """
    arrays: dict[str, list[str]]
    """Lines of text that describe this row, for each array, keyed by the array's name. An array of tokens has one line
    of decoded text per example, any other array has one line that summarises its values.
    """

    def __str__(self) -> str:
        loss = "" if self.loss is None else f" · loss {self.loss:.4f}"
        lines = [f"  {name}: {one}" for name, examples in self.arrays.items() for one in examples]
        return "\n".join([f"row {self.index}{loss}", *lines])


@dataclasses.dataclass(frozen=True)
class Replay:
    """Result of `replay`: the rebuilt batch of a training step."""

    step: int
    """Number of the step, counted from 1 as in `metrics.jsonl`."""
    checkpoint_step: int | None
    """Step of the checkpoint with whose parameters the losses are computed. None if there are no losses."""
    batch: dict[str, np.ndarray]
    """Arrays [b, ...] of the batch, as the objective receives them."""
    rows: list[Row]
    """Rows of the batch."""


def replay(folder: Path, step: int) -> Replay:
    """Rebuilds the batch of a training step from the run's data, and computes the loss of each row.

    Reads batches from the nearest earlier step at which the state of the data pipeline is known: the step of a
    checkpoint, a skipped step, or the start of the run.

    Args:
      folder: the run's folder.
      step: number of the step, counted from 1.

    Raises:
      InputError: If the data has changed, or the state of the data pipeline is not known for any earlier step.
    """
    experiment = writing.read_experiment(folder)
    if step < 1:
        raise InputError(f"--step {step}: expected at least 1, the first step")
    tokenizer = None if experiment.tokenizer is None else read_tokenizer(folder)
    record = _check_data(folder, experiment)
    mesh = sharding.make_mesh(mesh_for(experiment, len(jax.devices())))
    saved = Checkpoints(folder / CHECKPOINTS)
    before, lanes = _lanes_before(folder, step, experiment, saved, record)
    batch = _batch_after(experiment, tokenizer, lanes, step - before)
    used, losses = _losses(saved, step, experiment, mesh, batch)
    values = losses or [None] * experiment.data.batch
    rows = [Row(row, value, decoded(batch, row, tokenizer)) for row, value in enumerate(values)]
    return Replay(step, used, batch, rows)


def _check_data(folder: Path, experiment: Experiment) -> int:
    """Checks that the training data is the same as when the run was last trained on it.

    Returns:
      The step at which the run last resumed with accepted changes of its data. -1 if its data has never changed, or
      there is no record of the data.

    Raises:
      InputError: If the data differs from the record in the run's folder.
    """
    record = data_record.read_record(folder)
    if record is None:
        return -1
    with phase("opening the training data"):
        now = fingerprints(experiment.data.train.open(), loader.TRAIN)
    for name, change in record.changes(now).items():
        raise InputError(f"{folder}: {name} {change} since it was trained on; put the data back as it was")
    return record.changed_at


def _lanes_before(
    folder: Path, step: int, experiment: Experiment, saved: Checkpoints, changed_at: int
) -> tuple[int, np.ndarray]:
    """Finds the nearest step before `step` for which the state of the data pipeline is known.

    Args:
      folder: the run's folder.
      step: the step whose batch is rebuilt.
      experiment: experiment of the run.
      saved: checkpoints of the run.
      changed_at: result of `_check_data`. States from before this step belong to other data and are not used.

    Returns:
      The step, and the state of the data pipeline after it, int32 [batch, S], with S integers per batch row.
    """
    initial = loader.initial_state(experiment.data)
    known: dict[int, np.ndarray] = {} if experiment.fork or changed_at >= 0 else {0: initial}
    skipped, _ = read_history(folder / SKIPPED)
    known |= {int(line["step"]) - 1: np.array(line["lanes"], np.int32) for line in skipped}
    abstract = {"lanes": {"lanes": replicated(initial.shape, initial.dtype, sharding.make_mesh(sharding.Mesh(1)))}}
    for found in (found for found in saved.steps if found < step):
        try:
            lanes = np.asarray(saved.restore(abstract, found)["lanes"]["lanes"])
        except Damaged:
            continue
        known[found] = loader.abandon_documents(experiment.data, lanes) if found == changed_at else lanes
        break
    known = {found: lanes for found, lanes in known.items() if changed_at <= found < step}
    if not known:
        raise InputError(f"{folder}: no checkpoint before step {step}, so the state of the data there is not known")
    nearest = max(known)
    return nearest, known[nearest]


def _batch_after(experiment: Experiment, tokenizer: Tokenizer | None, lanes: np.ndarray, count: int) -> Any:
    """Reads `count` training batches, starting from a state of the data pipeline, and returns the last of them."""
    rows = range(experiment.data.batch)
    reading = loader.train_batches(experiment.data, tokenizer, experiment.seed, rows, lanes)
    with reading as batches, phase("reading batches") as update:
        for number in range(1, count):
            next(batches)
            update(f"{number} of {count}")
        return next(batches)[0]


def _losses(
    saved: Checkpoints, step: int, experiment: Experiment, mesh: jax.sharding.Mesh, batch: Mapping[str, np.ndarray]
) -> tuple[int | None, list[float] | None]:
    """Computes the loss of each row. Uses the parameters of the newest checkpoint from before the step, or of the
    oldest checkpoint if there is none from before the step.

    Returns:
      The step of the checkpoint, and the losses. None for both if there is no checkpoint, or the objective compares the
      rows of a batch.
    """
    order = [found for found in saved.steps if found < step] + [found for found in saved.steps[::-1] if found >= step]
    if not order or isinstance(experiment.objective, BatchObjective):
        return None, None
    stored = abstract_state(experiment, mesh)
    trees = {"params": stored.params, "reference": stored.reference}
    used, restored, _ = first_good(order, lambda found: saved.restore(trees, found))
    params = used_params(experiment, restored["params"], mesh)
    reference = reference_params(experiment, restored["params"], restored["reference"])
    objective, model = experiment.objective, experiment.model

    @jax.jit
    def loss(params, reference, row):
        means = objective(model, params, objective.with_reference(model, reference, row))
        return sum(weight * means[name].value for name, weight in with_auxiliary(objective.loss_weights, means).items())

    with phase("computing losses"), sharding.use(mesh, experiment.mesh):
        rows = ({name: jnp.asarray(array[row : row + 1]) for name, array in batch.items()} for row in _rows(batch))
        return used, [float(loss(params, reference, row)) for row in rows]


def _rows(batch: Mapping[str, np.ndarray]) -> range:
    return range(len(next(iter(batch.values()))))


def decoded(batch: Mapping[str, np.ndarray], row: int, tokenizer: Tokenizer | None) -> dict[str, list[str]]:
    """Describes one row of a batch as text. Returns a dict that maps the name of each array to a list of lines.

    An array of tokens gives one line of decoded text per example in the row, or none without a tokenizer. Any other
    array gives one line that summarises its values.
    """
    found = {}
    for name, array in batch.items():
        if name in PACKED_KEYS and tokenizer is not None:
            found[name] = list(_texts(array[row], batch[PACKED_KEYS[name][0]][row], tokenizer))
        elif not any(name in names for names in PACKED_KEYS.values()):
            found[name] = [_summary(array[row])]
    return found


def _texts(tokens: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    for segment in range(1, int(segments.max(initial=0)) + 1):
        yield json.dumps(tokenizer.decode(tokens[segments == segment]), ensure_ascii=False)


def _summary(values: np.ndarray) -> str:
    if values.size <= MOST_NUMBERS:
        return np.array2string(values, separator=", ", precision=4).replace("\n", "")
    shape = " × ".join(map(str, values.shape))
    if values.dtype.kind != "f" or values.ndim == 1:
        first = ", ".join(f"{value:g}" for value in values.reshape(-1)[:MOST_NUMBERS])
        return f"{values.dtype} {shape}: {first}, …"
    return f"{values.dtype} {shape}: from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
