"""Reads what is stored in a run's folder about its training, without its parameters: the config, the metrics, the
skipped steps, the sessions, the data and the certificate.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer import digests, storage
from jaxformer.errors import InputError
from jaxformer.runs.data_record import DataRecord
from jaxformer.runs.data_record import read_record as read_data_record
from jaxformer.runs.files import experiment_text
from jaxformer.runs.history import METRICS, SKIPPED, read_history
from jaxformer.runs.sessions import SESSIONS, Session, read_sessions

CERTIFICATE = "parity.json"
"""Name of the file with the certificate of an imported run."""
TRAIN = "train"
"""Value of `split` in the lines of training steps."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Record of a run: all that is stored in its folder about its training."""

    folder: Path
    """The run's folder."""
    config: Mapping[str, Any]
    """All fields of the experiment, keyed by dotted path. A field that contains a config value has the name of its
    class, such as `Bert`.
    """
    lines: Sequence[Mapping[str, Any]]
    """Lines of `metrics.jsonl`: `step`, `split` and metrics."""
    skips: Sequence[Mapping[str, Any]]
    """Lines of `skipped.jsonl`, one for each step that was skipped because its gradient was not finite."""
    sessions: Sequence[Session]
    """The sessions of the training, oldest first. Empty if they were not recorded."""
    data: DataRecord | None
    """Fingerprints of the data, and its accepted changes. None if they were not recorded."""
    certificate: Mapping[str, Any] | None
    """Content of `parity.json`. None if the run has no certificate."""
    problems: tuple[str, ...]
    """A line for each part of the folder that is damaged and left out."""

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name or str(self.folder)

    @property
    def steps(self) -> int:
        """Number of steps that the config asks for."""
        return int(self.config.get("steps") or 0)

    @functools.cached_property
    def step(self) -> int:
        """Number of steps that are done, as far as they were logged."""
        logged = max((int(line["step"]) for line in self.lines), default=0)
        return max(logged, max((session.last_step for session in self.sessions), default=0))

    @functools.cached_property
    def evaluations(self) -> tuple[str, ...]:
        """Names of the evaluations that have run, in the order in which they first ran."""
        return tuple(dict.fromkeys(line["split"] for line in self.lines if line["split"] != TRAIN))

    @functools.cached_property
    def status(self) -> str:
        """Describes whether the run is finished, such as `done` or `stopped by SIGTERM`."""
        if self.sessions:
            return self.sessions[-1].ended or "running, or killed"
        if not self.lines:
            return "not trained here"
        return "done" if self.step >= self.steps else "not finished"

    def series(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """Returns the steps and the values of a metric.

        Args:
          split: `train`, or the name of an evaluation.
          metric: name of the metric.
        """
        found = [line for line in self.lines if line["split"] == split and metric in line]
        return [int(line["step"]) for line in found], [float(line[metric]) for line in found]

    def metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of the metrics of a split, in the order in which they were written."""
        names = (name for line in self.lines if line["split"] == split for name in line)
        return tuple(dict.fromkeys(name for name in names if name not in ("step", "split")))

    def latest(self, split: str) -> Mapping[str, Any]:
        """Returns the last line of a split. Empty if there is none."""
        return next((line for line in reversed(self.lines) if line["split"] == split), {})


def read_config(folder: Path) -> dict[str, Any]:
    """Returns all fields of a run's experiment, keyed by dotted path. Raises InputError if there is no run."""
    try:
        return flattened(json.loads(experiment_text(folder)))
    except json.JSONDecodeError as error:
        raise InputError(f"{folder}: not a run's folder: its experiment is not valid JSON: {error}") from error


def read_record(folder: Path) -> RunRecord:
    """Reads the record of a run. The run may still be training.

    Raises:
      InputError: If the folder does not contain a run, or a file cannot be read.
    """
    config = read_config(folder)
    problems: list[str] = []
    with storage.reported(folder):
        lines, damaged = read_history(folder / METRICS)
        skips, damaged_skips = read_history(folder / SKIPPED)
        sessions = read_sessions(folder / SESSIONS)
    try:
        data = read_data_record(folder)
    except InputError as error:
        data, problems = None, [str(error)]
    certificate = _certificate(folder / CERTIFICATE)
    problems += [f"{problem}, and is left out" for problem in (*damaged, *damaged_skips)]
    return RunRecord(folder, config, lines, skips, sessions, data, certificate, tuple(problems))


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Returns all fields of the JSON of an experiment, keyed by dotted path. The class of a config value is the value
    of its own path, without its module.
    """
    if isinstance(value, Mapping):
        found = {path: str(value["class"]).rpartition(".")[2]} if path and "class" in value else {}
        for name, item in value.items():
            if name not in ("class", digests.FIELD):
                found |= flattened(item, f"{path}.{name}" if path else name)
        return found
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        found = {}
        for index, item in enumerate(value):
            found |= flattened(item, f"{path}.{index}")
        return found
    return {path: value}


def config_differences(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Returns the fields in which the configs of several runs differ, with the value of each run. The value is
    `MISSING` if a config does not have the field.
    """
    paths = dict.fromkeys(path for record in records for path in record.config)
    values = {path: [record.config.get(path, MISSING) for record in records] for path in paths}
    return {path: row for path, row in values.items() if any(value != row[0] for value in row)}


def _certificate(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(storage.read_bytes(str(path)))
    except (FileNotFoundError, ValueError):
        return None


MISSING = "–"
"""Value that `config_differences` returns for a field that a config does not have."""
