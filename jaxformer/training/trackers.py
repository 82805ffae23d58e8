"""Sends the metrics of a run to experiment trackers, in addition to `metrics.jsonl` and TensorBoard: Weights & Biases
and MLflow, if the config asks for them. By default, both store everything in the run's folder and contact no server.
"""

import hashlib
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxformer import storage
from jaxformer.errors import InputError

PROJECT = "jaxformer"
"""Name of the project of Weights & Biases, and of the experiment of MLflow."""
_LONGEST = 500
"""Maximum number of characters of a parameter's value in MLflow."""
_AT_ONCE = 100
"""Maximum number of parameters that MLflow stores in one call."""


class Tracker(Protocol):
    """Interface of experiment trackers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Stores metrics of a step, with keys like `train/loss`."""
        ...

    def close(self) -> None:
        """Waits until everything is stored."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError if the package of one of the trackers is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"log.trackers={name}: needs {name}, which is not installed; pip install 'jaxformer[{name}]'"
            )


def open_trackers(names: Sequence[str], folder: Path, home: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Opens experiment trackers.

    Args:
      names: names of trackers, which are also extras of jaxformer.
      folder: the run's folder, whose name is that of the tracked run.
      home: local folder in which the trackers store their files: the run's folder, or a copy of it.
      config: all fields of the experiment, keyed by dotted path.
    """
    classes = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    return [classes[name](folder, home, config) for name in names]


def identity(folder: Path) -> str:
    """Returns an identifier of a run, made of the path of its folder, so that a resumed run is the same one there."""
    return hashlib.sha256(os.fspath(storage.absolute(folder)).encode()).hexdigest()[:16]


class WeightsAndBiases:
    """Tracker of Weights & Biases. It is offline, with files in the subfolder `wandb`, unless the environment variable
    `WANDB_MODE` has another value; `wandb sync` uploads these files.
    """

    def __init__(self, folder: Path, home: Path, config: Mapping[str, Any]):
        """Starts or continues the tracked run. Same arguments as `open_trackers`."""
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(home),
            id=identity(folder),
            name=folder.name,
            resume="allow",
            config={name: value for name, value in config.items() if value is not None},
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Tracker of MLflow. It stores files in the subfolder `mlruns`, unless the environment variable
    `MLFLOW_TRACKING_URI` names a server.
    """

    def __init__(self, folder: Path, home: Path, config: Mapping[str, Any]):
        """Starts or continues the tracked run. Same arguments as `open_trackers`."""
        # MLflow 3 accepts files as a store only if this is set.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._entities = importlib.import_module("mlflow.entities")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (home.absolute() / "mlruns").as_uri()
        self._client = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        own = identity(folder)
        earlier = self._client.search_runs([experiment], f"tags.jaxformer = '{own}'", max_results=1)
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        created = self._client.create_run(experiment, tags={"jaxformer": own}, run_name=folder.name)
        self._run = created.info.run_id
        params = [self._entities.Param(name, str(value)[:_LONGEST]) for name, value in config.items()]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now, entity = int(time.time() * 1000), self._entities.Metric
        # Names of metrics may contain only letters, digits and a few signs.
        metrics = [entity(_allowed(name), value, now, step) for name, value in values.items() if not math.isnan(value)]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)
