"""Checkpoints of a run: the training state and the data's lanes together, saved in the background by Orbax."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers as policies

from jaxformer.config import Checkpoint

Tree = Any


class Checkpoints:
    """The checkpoints in one folder, each of several named trees of arrays.

    A save is atomic: a process killed while it writes leaves the checkpoint before it as the latest.
    """

    def __init__(self, folder: Path, settings: Checkpoint | None = None):
        """Opens the folder; without `settings` for reading only."""
        reading = settings is None
        with _errors_only() if reading else contextlib.nullcontext():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=None if reading else _preserved(settings),
                best_fn=lambda _: 0.0,  # Without one, Orbax keeps no metrics beside a checkpoint.
                read_only=reading,
                cleanup_tmp_directories=not reading,
            )
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def best(self, settings: Checkpoint) -> int | None:
        """The step of the best checkpoint by `settings.best`, the first of several; None where none was evaluated."""
        evaluated = {step: results for step in sorted(self._manager.all_steps()) if (results := self.results(step))}
        values = {step: results[settings.best] for step, results in evaluated.items() if settings.best in results}
        return max(values, key=lambda step: goodness(values[step], settings), default=None)

    def results(self, step: int) -> dict[str, float] | None:
        """The evaluation at the step of a checkpoint, if there was one."""
        return self._manager.metrics(step)

    def save(self, step: int, trees: Mapping[str, Tree], metrics: Mapping[str, float] | None) -> None:
        """Starts to save; the arrays may be donated at once. Saving a step again does nothing.

        Args:
          step: the number of updates done.
          trees: arrays on the mesh, by the name that `restore` will ask for; None is left out.
          metrics: the evaluation at this step, if there was one, to find the best checkpoint.
        """
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items() if tree is not None}
        with _errors_only():  # It warns where there are no metrics.
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=dict(metrics or {}) or None)

    def restore(self, abstract: Mapping[str, Tree], step: int | None = None) -> dict[str, Tree]:
        """Reads some of the trees of a checkpoint (the latest by default) onto the shardings asked for.

        Args:
          abstract: jax.ShapeDtypeStruct with shardings, by name; None is left out.
          step: which checkpoint.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items() if tree is not None}
        step = self.latest if step is None else step
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] if name in items else None for name in abstract}

    def wait(self) -> None:
        """Returns when all saves are on disk; raises the error that one of them met."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()


def goodness(value: float, settings: Checkpoint) -> float:
    """A number that is higher where the value of `settings.best` is better; what is no number is the worst."""
    if math.isnan(value):
        return -math.inf
    return value if settings.best_is == "highest" else -value


def _preserved(settings: Checkpoint) -> policies.PreservationPolicy:
    """The latest checkpoints, and the best one of those that were evaluated."""
    latest = policies.LatestN(settings.keep)
    if settings.best is None:
        return latest
    best = policies.BestN(
        get_metric_fn=lambda metrics: goodness(metrics[settings.best], settings),
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return policies.AnyPreservationPolicy([latest, best])


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Silences Orbax's warnings."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def replicated(shape: tuple[int, ...], dtype: np.dtype, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """An array of which every device is to hold the whole."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
