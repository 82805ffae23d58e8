"""Checkpoints of a run: the training state and the state of the data pipeline, saved together in the background by
Orbax.
"""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers as policies

from jaxformer import digests, storage
from jaxformer.config import Checkpoint
from jaxformer.errors import InputError
from jaxformer.evaluations import BestMetric
from jaxformer.progress import phase
from jaxformer.runs.folder import CHECKPOINTS, Claim
from jaxformer.training import checkpoint_arrays, s3_checkpoints
from jaxformer.training.checkpoint_arrays import Tree
from jaxformer.training.checkpoint_digests import METRICS, Handler, check_digests, write_digests
from jaxformer.training.damage import unless_damaged

COMMITTED = ocp.options.AtomicityMode.COMMIT_FILE
LEAST_SLICE = 2**20
"""Size in bytes of the slices of a replicated array that the devices write together, at least. Smaller arrays are
written by one device, because XLA compiles a program for each slice of each shape.
"""


class _Manager(ocp.CheckpointManager):
    """Orbax checkpoint manager that treats a checkpoint with damaged metrics as not evaluated, instead of failing."""

    def metrics(self, step: int) -> dict[str, float] | None:
        with contextlib.suppress(ValueError, OSError):
            folder = storage.path(self.directory) / str(step)
            if (folder / METRICS).exists():
                check_digests(folder, (METRICS,))
                return super().metrics(step)
        return None


class Checkpoints:
    """The checkpoints in one folder. Each checkpoint consists of several named trees of arrays, such as `params`.

    A save is atomic: if the process is killed while it writes, the previous checkpoint remains the latest. Nothing is
    compressed, because trained parameters hardly become smaller, and compression takes longer than writing.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint | None = None,
        claim: Claim | None = None,
        best: BestMetric | None = None,
    ):
        """Opens the folder. If `settings` is None, it is opened only for reading.

        Args:
          folder: folder of the checkpoints.
          settings: config that sets how many of the latest checkpoints to keep.
          claim: write access to the run's folder. Saving raises InputError if that folder has been moved.
          best: metric. The best checkpoint according to it is kept in addition to the latest ones. None to keep only
            those.
        """
        reading = settings is None
        self._folder, self._claim, self._saving = folder, claim, 0
        in_s3 = os.fspath(folder).startswith(s3_checkpoints.S3)
        if in_s3:
            s3_checkpoints.enable()
        with _errors_only() if reading else contextlib.nullcontext():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=None if reading else _preserved(settings, best),
                best_fn=lambda _: 0.0,  # Without best_fn, Orbax stores no metrics with a checkpoint.
                read_only=reading,
                cleanup_tmp_directories=not reading,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_digests),
                # A folder is renamed object by object in S3: a checkpoint is there when its last object is, as in gs://.
                atomicity_options=ocp.options.AtomicityOptions(COMMITTED if in_s3 else ocp.options.AtomicityMode.AUTO),
            )
            self._home = storage.absolute(claim.home / CHECKPOINTS if claim else folder)
            self._manager = _Manager(epath.Path(self._home), options=options, handler_registry=_registry())

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint. None if there are no checkpoints."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def best_first(self, best: BestMetric) -> list[int]:
        """Returns the steps of all checkpoints, best first according to a metric. Checkpoints without evaluation come
        last.

        Of several equally good checkpoints, the earliest comes first.
        """
        ranks = {step: best.rank(self.results(step) or {}) for step in self.steps}
        evaluated = {step: rank for step, rank in ranks.items() if rank is not None}
        in_order = sorted(evaluated, key=lambda step: (-evaluated[step], step))
        return in_order + [step for step in self.steps if step not in evaluated]

    def best(self, best: BestMetric) -> int | None:
        """Returns the step of the best checkpoint according to a metric, the earliest of several equally good ones.
        None if no checkpoint was evaluated.
        """
        first = next(iter(self.best_first(best)), None)
        return first if first is not None and best.rank(self.results(first) or {}) is not None else None

    def results(self, step: int) -> dict[str, float] | None:
        """Returns the metrics of all evaluations at a step, with keys like `validation/loss`, or None if there are
        none.
        """
        return self._manager.metrics(step)

    @phase("saving")
    def save(self, step: int, trees: Mapping[str, Tree], metrics: Mapping[str, float] | None) -> None:
        """Starts to save a checkpoint in the background. Does nothing if the step is already saved. After this call
        returns, the caller may donate the arrays.

        Args:
          step: number of training steps done.
          trees: maps names, as used in `restore`, to trees of arrays on the mesh. Trees that are None are left out.
          metrics: evaluation results at this step, to find the best checkpoint. None if there was no evaluation.
        """
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items() if tree is not None}
        with self._in_place(), _errors_only():  # Orbax warns if there are no metrics.
            self._manager.wait_until_finished()  # The previous save needs its own step until it is committed.
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=dict(metrics or {}) or None)

    @phase("reading the checkpoint")
    def restore(self, abstract: Mapping[str, Tree], step: int | None = None) -> dict[str, Tree]:
        """Reads some of the trees of a checkpoint, and places their arrays on devices. Returns a dict that maps names
        to trees.

        Args:
          abstract: maps the names of the trees to read to trees of jax.ShapeDtypeStructs with shardings. Entries that
            are None are left out.
          step: step of the checkpoint. If None, the latest checkpoint.

        Raises:
          InputError: If the checkpoint has other arrays, other shapes, or dtypes with more precision than requested.
          Damaged: If a part of the checkpoint is missing or cannot be read.
        """
        step = self.latest if step is None else step
        if step is None:
            raise InputError(f"{self._folder}: has no checkpoint")
        folder = self._checked(step, abstract)
        return {
            name: tree and unless_damaged(folder, functools.partial(checkpoint_arrays.restored, folder / name, tree))
            for name, tree in abstract.items()
        }

    def stored(self, abstract: Mapping[str, Tree], step: int) -> dict[str, Tree]:
        """Returns trees of a checkpoint, keyed by name. Their leaves are `StoredArray`s, which are read from disk only
        when they are used.

        Args:
          abstract: shapes, types and shardings of the arrays, as in `restore`.
          step: step of the checkpoint.

        Raises:
          InputError: Under the same condition as `restore`.
        """
        folder = self._checked(step, abstract)
        return {
            name: tree and unless_damaged(folder, functools.partial(checkpoint_arrays.stored, folder / name, tree))
            for name, tree in abstract.items()
        }

    def set_aside(self, after: int, folder: Path) -> None:
        """Moves all checkpoints of later steps than `after` to another folder. They are damaged, and training will save
        these steps again.
        """
        later = [step for step in self.steps if step > after]
        if not later:
            return
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            for step in later:
                names = itertools.chain([f"{step}"], (f"{step}-{number}" for number in itertools.count(2)))
                storage.rename(self._of(step), next(folder / name for name in names if not (folder / name).exists()))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set_aside")
        self._manager.reload()

    @phase("saving")
    def wait(self) -> None:
        """Waits until all saves are on disk. Raises the error of a save that failed."""
        with self._in_place():
            self._manager.wait_until_finished()
            if not storage.is_remote(self._folder):
                digests.sync(self._home)

    def _write_digests(self) -> None:
        """Writes the digests of the checkpoint that is being saved, before it is committed."""
        temporary, final = (self._home / f"{self._saving}{end}" for end in (ocp.path.step.TMP_DIR_SUFFIX, ""))
        write_digests(temporary if temporary.exists() else final)

    def _checked(self, step: int, abstract: Mapping[str, Tree]) -> epath.Path:
        """Compares the files of the trees in `abstract` with their digests. Returns the folder of the checkpoint.
        Raises Damaged if a file differs.
        """
        folder, names = self._of(step), [METRICS, *(name for name, tree in abstract.items() if tree)]
        unless_damaged(folder, functools.partial(check_digests, storage.path(folder), names))
        return folder

    def _of(self, step: int) -> epath.Path:
        return epath.Path(storage.absolute(self._folder)) / str(step)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Context manager for access to the folder. If the run's folder has been moved, raises InputError in place of
        any error that this causes.
        """
        if self._claim:
            self._claim.check()
        try:
            yield
        except Exception:
            if self._claim:
                self._claim.check_here()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # An error that is already being raised is more helpful than a failure to close, which it may have caused.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self._manager.close()


def _preserved(settings: Checkpoint, best: BestMetric | None) -> policies.PreservationPolicy:
    """Returns the Orbax policy that keeps the latest checkpoints and, if `best` is given, the best evaluated one."""
    latest = policies.LatestN(settings.keep)
    if best is None:
        return latest

    def rank(results: Mapping[str, float]) -> float:
        found = best.rank(results)
        return -math.inf if found is None else found  # Evaluated before this metric was asked for.

    kept = policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
    return policies.AnyPreservationPolicy([latest, kept])


def _registry() -> ocp.handlers.CheckpointHandlerRegistry:
    """Returns Orbax handlers that save and restore trees of any name, without compression."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_SLICE)
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.PyTreeSave, Handler(use_compression=False, type_handler_registry=types))
    return registry


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Context manager that silences Orbax's warnings, but not its errors."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def replicated(shape: tuple[int, ...], dtype: np.dtype, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """Returns an abstract array that is replicated on every device."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
