"""Trains the small run whose copies `jaxformer drill` damages on purpose, and compares the damaged copies with it."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import config, storage
from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.runs import run as runs
from jaxformer.runs import writing
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.training.checkpoints import Checkpoints, replicated
from jaxformer.training.damage import first_good
from jaxformer.training.state import abstract_state

STEPS, EVERY = 24, 2
"""Number of training steps of the small run that `jaxformer drill` trains, and number of steps between its
checkpoints.
"""
_CONFIG = '''
"""The small run of a drill."""

from pathlib import Path

from jaxformer import config

experiment = config.from_json(Path(__file__).with_name("{name}").read_text(encoding="utf-8"))
'''


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a drill: a test that harms a small training run several times in one way, such as by a bit flip in a
    checkpoint, and checks that each of these faults is survived.
    """

    fault: str
    """Name of the kind of fault, such as "bit flips" or "SIGKILL"."""
    tried: int
    """Number of faults that were tried."""
    detected: int
    """Number of faults that were detected and survived: an older, undamaged checkpoint was read; the change of the
    training data was found; or the run resumed and ended with the same arrays as a run without faults.
    """
    harmless: int
    """Number of faults that were not detected, but had no effect: all arrays that were read are bitwise equal to those
    of a run without faults.
    """
    lost: int
    """Maximum number of training steps that were lost because of one fault, and had to be trained again."""
    seconds: Sequence[float]
    """Time in seconds that it took to recover, one number per fault: the time to read a good checkpoint, to check the
    data, to train the first step after a kill, or to exit after a signal.
    """
    problems: Sequence[str] = ()
    """Error messages, one for each fault after which wrong arrays were read, or after which the run did not resume."""


def small(experiment: Experiment) -> Experiment:
    """Returns a copy of the experiment with the same model and data that trains for only 24 steps, and saves and
    evaluates several times within them.
    """
    changes: dict[str, Any] = {"steps": STEPS, "init": None, "fork": None, "fork_step": None, "log.every": 1}
    changes |= {"checkpoint.every": EVERY, "checkpoint.keep": 3}
    changes |= {"evaluation.every": STEPS // 2, "evaluation.batches": 1, "evaluation.patience": None}
    return config.override(experiment, changes)


class Scratch:
    """Folder in which `jaxformer drill` works: a small training run, called the undisturbed run, and damaged copies of
    it that are compared with it.
    """

    def __init__(self, home: Path, experiment: Experiment, local: Path, allowed: Sequence[str] = ()):
        """Trains the undisturbed run, the small training run whose copies are damaged later.

        Args:
          home: new folder for the runs, which may be in a bucket.
          experiment: experiment of the undisturbed run, as returned by `small`.
          local: local folder for config files.
          allowed: packages of the user whose classes the experiment may use.

        Raises:
          InputError: If training fails.
        """
        self.home, self.local, self._count = home, local, 0
        self._allowed = [word for package in allowed for word in ("--allow", package)]
        self.experiment = experiment
        self.undisturbed = home / "undisturbed"
        began = time.monotonic()
        process = self.start(self.undisturbed)
        said = process.communicate()
        self.seconds = time.monotonic() - began
        """Time in seconds that the training of the undisturbed run (without faults) took."""
        if process.returncode:
            raise InputError(f"drill: the undisturbed run failed: {(said[1] or said[0]).strip().splitlines()[-1]}")
        if experiment.tokenizer is not None:  # Later runs copy the tokenizer instead of training it again.
            tokenizer = runs.RunTokenizer(str(self.undisturbed))
            self.experiment = dataclasses.replace(experiment, tokenizer=tokenizer)
        self.expected = self.state(self.undisturbed)
        """All arrays in the last checkpoint of the undisturbed run (without faults), keyed by path."""

    def new(self, name: str) -> Path:
        """Returns the path of a new folder whose name begins with `name`. The folder is not created."""
        self._count += 1
        return self.home / f"{name}-{self._count}"

    def copy(self, name: str) -> Path:
        """Copies the undisturbed run (without faults) to a new folder, and returns the path of the folder."""
        target = self.new(name)
        for file, content in contents(self.undisturbed).items():
            write(target / file, content)
        return target

    def start(
        self, folder: Path, variables: Mapping[str, str] | None = None, changes: Mapping[str, Any] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a `jaxformer train` process that trains, or resumes, the small run in `folder`. Returns the process
        without waiting for its end.

        Args:
          folder: folder of the run.
          variables: additional environment variables of the process.
          changes: fields of the experiment that differ, keyed by dotted path.
        """
        self._count += 1
        home = self.local / f"config{self._count}"
        home.mkdir()
        experiment = config.override(self.experiment, changes or {})
        (home / "experiment.json").write_text(config.to_json(experiment), encoding="utf-8")
        (home / "drill.py").write_text(_CONFIG.format(name="experiment.json"), encoding="utf-8")
        command = [sys.executable, "-m", "jaxformer", "train", str(home / "drill.py"), "--workdir", str(folder)]
        pipe, environment = subprocess.PIPE, {**os.environ, **(variables or {})}
        return subprocess.Popen(
            [*command, *self._allowed], env=environment, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )

    @functools.cached_property
    def trees(self) -> dict[str, Any]:
        """Shapes, dtypes and shardings of the arrays in a checkpoint: a dict that maps names to pytrees, as the
        argument of `Checkpoints.restore`.
        """
        mesh, experiment = self.mesh, writing.read_experiment(self.undisturbed)
        lanes = loader.initial_state(experiment.data)
        lanes_tree = {"lanes": replicated(lanes.shape, lanes.dtype, mesh)}
        return abstract_state(experiment, mesh).trees() | {"lanes": lanes_tree}

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Device mesh on which the arrays of checkpoints are placed when they are read."""
        return sharding.make_mesh(self.experiment.mesh)

    def state(self, folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
        """Returns all arrays of a checkpoint of a run, keyed by path. If `step` is None, reads the newest
        checkpoint.
        """
        return flat(Checkpoints(folder / CHECKPOINTS).restore(self.trees, step))

    def good(self, folder: Path) -> tuple[int, dict[str, np.ndarray]]:
        """Returns the step of the newest undamaged checkpoint of a run, and its arrays, keyed by path."""
        saved, trees = Checkpoints(folder / CHECKPOINTS), self.trees
        step, restored, _ = first_good(saved.steps, lambda step: saved.restore(trees, step))
        return step, flat(restored)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Flattens a pytree of arrays to a dict that maps the path of each array, as a string, to the array."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def differing(name: object, ours: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str:
    """Compares arrays with the expected arrays bit by bit. Returns an error message that names the first array that
    differs, or an empty string if there is none.

    Args:
      name: text at the start of the message, such as a description of the fault.
      ours: arrays that were read, keyed by path.
      expected: arrays of the run without faults, keyed by path.
    """
    for path, array in expected.items():
        if path not in ours or ours[path].tobytes() != array.tobytes():
            return f"{name}: {path} differs from the undisturbed run"
    return ""


def latest(folder: Path) -> int:
    """Returns the step of the last checkpoint of a run; 0 if there is none."""
    path = folder / CHECKPOINTS
    return (Checkpoints(path).latest or 0) if path.is_dir() else 0


def contents(folder: Path) -> dict[str, bytes]:
    """Returns a dict that maps the relative path of each file below a folder to its content."""
    if storage.is_remote(folder):
        return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.objects_below(str(folder))}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def write(path: Path, content: bytes) -> None:
    """Writes a file, or an object in a bucket, and creates the missing folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def remove(home: Path) -> None:
    """Removes the folder of a `jaxformer drill`, which is local or in a bucket."""
    if storage.is_remote(home):
        with storage.reported(home, "cannot be removed"):
            storage.file_system(home).rm(str(home), recursive=True)
    else:
        shutil.rmtree(home)
