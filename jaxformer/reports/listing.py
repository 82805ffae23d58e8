"""Finds the runs in a folder, and lists them with their results, for `jaxformer runs`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxformer import storage
from jaxformer.errors import InputError
from jaxformer.progress import duration
from jaxformer.reports.records import MISSING, RunRecord, config_differences, read_record
from jaxformer.reports.trained import number, utc
from jaxformer.runs.folder import EXPERIMENT
from jaxformer.suggestions import nearest

DEPTH = 3
"""Number of levels of subfolders that are searched for runs."""
METRICS = 3
"""Number of metrics that are listed if the user does not name any."""
FIXED = ("run", "started", "status", "step", "model", "parameters", "time")
"""Columns that every list has. Metrics follow."""


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """A run in a list."""

    name: str
    """Path of the run's folder, relative to the folder that was searched."""
    record: RunRecord
    """Content of the folder."""

    def value(self, column: str) -> Any:
        """Returns the value of a column, by which runs are sorted. None if the run does not have it."""
        record, sessions = self.record, self.record.sessions
        if column in FIXED:
            return {
                "run": self.name,
                "started": sessions[0].start["time"] if sessions else None,
                "status": record.status,
                "step": record.step,
                "model": str(record.config.get("model")),
                "parameters": sessions[-1].start["parameters"] if sessions else None,
                "time": sum(session.total for session in sessions) if sessions else None,
            }[column]
        split, _, metric = column.partition("/")
        value = record.latest(split).get(metric)
        return None if value is None or math.isnan(value) else value

    def shown(self, column: str) -> str:
        """Returns the text of a column."""
        value = self.value(column)
        if value is None:
            return MISSING
        formats = {"started": utc, "time": duration, "parameters": "{:,}".format, "step": self._progress}
        if column in formats:
            return formats[column](value)
        return value if isinstance(value, str) else number(value)

    def _progress(self, step: int) -> str:
        return f"{step:,}/{self.record.steps:,}"


def find_runs(folder: Path) -> tuple[list[ListedRun], list[str]]:
    """Finds the runs in a folder and its subfolders.

    Returns:
      The runs, sorted by name, and a line for each run that cannot be read.

    Raises:
      InputError: If the folder does not exist or contains no run.
    """
    with storage.reported(folder, "cannot be listed"):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected one that contains runs")
        homes = _homes(folder, DEPTH)
    found, problems = [], []
    for home in homes:
        try:
            name = home.relative_to(folder).as_posix() if home != folder else home.name
            found.append(ListedRun(name, read_record(home)))
        except InputError as error:
            problems.append(str(error))
    if not found:
        more = f"; {problems[0]}" if problems else ""
        raise InputError(f"{folder}: contains no runs, which are folders with an {EXPERIMENT}{more}")
    return found, problems


def columns_of(runs: Sequence[ListedRun], metrics: Sequence[str]) -> list[str]:
    """Returns the names of the columns of a list.

    Args:
      runs: the runs.
      metrics: metrics to list, such as `loss` or `validation/loss`. If empty, those of `checkpoint.best` and the first
        ones of the evaluations.

    Raises:
      InputError: If no run has one of the metrics.
    """
    known = list(
        dict.fromkeys(
            f"{split}/{metric}"
            for run in runs
            for split in (*run.record.evaluations, "train")
            for metric in run.record.metrics(split)
        )
    )
    if not metrics:
        best = [str(run.record.config.get("checkpoint.best")) for run in runs]
        first = [name for name in known if not name.startswith("train/")] or known
        chosen = [*(_found(name, known) for name in best), *first]
        return [*FIXED, *list(dict.fromkeys(filter(None, chosen)))[:METRICS]]
    found = []
    for metric in metrics:
        if (name := _found(metric, known)) is None:
            perhaps = nearest(metric, [*known, *(name.partition("/")[2] for name in known)])
            raise InputError(f"--metric {metric}: no run has it" + (f"; perhaps {perhaps}" if perhaps else ""))
        found.append(name)
    return [*FIXED, *found]


def sorted_runs(runs: Sequence[ListedRun], column: str, reverse: bool) -> list[ListedRun]:
    """Sorts runs by a column. Those that do not have it come last in both directions."""
    having = [run for run in runs if run.value(column) is not None]
    ordered = sorted(having, key=lambda run: (run.value(column), run.name), reverse=reverse)
    return ordered + [run for run in runs if run.value(column) is None]


def sort_column(name: str, runs: Sequence[ListedRun], columns: Sequence[str]) -> str:
    """Returns the column that `--sort` names: one of the fixed ones, or a metric. Raises InputError for others."""
    if name in columns:
        return name
    try:
        return columns_of(runs, [name])[-1]
    except InputError as error:
        raise InputError(f"--sort {name}: no such column; expected a metric, or one of {', '.join(FIXED)}") from error


def as_table(runs: Sequence[ListedRun], columns: Sequence[str]) -> Table:
    """Returns a table for the terminal with one line for each run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        is_text = column in ("run", "started", "status", "model")
        table.add_column(_header(column), justify="left" if is_text else "right", overflow="fold")
    for run in runs:
        table.add_row(*(Text(run.shown(column)) for column in columns))
    return table


def as_json(runs: Sequence[ListedRun], columns: Sequence[str]) -> list[Mapping[str, Any]]:
    """Returns an object for each run, with the values of its columns."""
    return [{column: run.value(column) for column in columns} for run in runs]


def comparison(runs: Sequence[ListedRun]) -> Table | None:
    """Returns a table for the terminal of the config fields in which runs differ. None if there are none."""
    differences = config_differences([run.record for run in runs])
    if not differences:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("field", *(run.name for run in runs)):
        table.add_column(name, overflow="fold")
    for path, values in differences.items():
        table.add_row(path, *(Text(str(value)) for value in values))
    return table


def _homes(folder: Path, depth: int) -> list[Path]:
    if (folder / EXPERIMENT).exists():
        return [folder]
    if not depth:
        return []
    below = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".") and child.is_dir()]
    return [home for child in below for home in _homes(child, depth - 1)]


def _found(name: str, known: Sequence[str]) -> str | None:
    """Returns the full name of a metric that is given with or without the name of its evaluation."""
    return next((one for one in known if name in (one, one.partition("/")[2])), None)


def _header(column: str) -> str:
    return column.removeprefix("validation/").replace("_", " ")
