"""Text and HTML representations of a run: one line, a summary of several lines, and a card for notebooks."""

import html
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

if typing.TYPE_CHECKING:
    from jaxformer.runs.run import Run

FEW, WORST = 10, 3
"""If there are at most `FEW` labels, the F1 scores of all labels are shown. If there are more, only the `WORST` lowest
F1 scores are shown.
"""


class Summary(str):
    """Text of several lines whose repr is the text itself, so that an interactive Python session prints it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def one_line(run: "Run") -> str:
    """Returns the run's folder, model, size and step on one line."""
    return f"<Run {run.folder}: {_model(run)}, {_progress(run)}>"


def summary(run: "Run") -> Summary:
    """Returns the parts of the model with their sizes, the training data, and the last evaluation."""
    parts = {name: _size(tree) for name, tree in run.params.items()}
    width = max(map(len, parts), default=0)
    lines = [f"{run.folder} · {_progress(run)}", _model(run)]
    lines += [f"  {name:{width}}  {size:>14,}" for name, size in parts.items()]
    lines += [f"{name}: {value}" for name, value in _settings(run).items()]
    evaluation = _last_evaluation(run)
    if evaluation:
        lines += [f"evaluation at step {evaluation['step']:,}"]
        lines += [f"  {name}: {value:.4f}" for name, value in headline(_metrics(evaluation)).items()]
    return Summary("\n".join(lines))


def card(run: "Run") -> str:
    """Returns the content of `summary` as an HTML table."""
    rows = {"folder": str(run.folder), "model": _model(run), "progress": _progress(run), **_settings(run)}
    evaluation = _last_evaluation(run)
    if evaluation:
        rows[f"evaluation at step {evaluation['step']:,}"] = ", ".join(
            f"{name} {value:.4f}" for name, value in headline(_metrics(evaluation)).items()
        )
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def headline(values: Mapping[str, float]) -> dict[str, float]:
    """Selects the metrics to show. If there are more than `FEW` F1 scores of single labels, such as `f1/positive`,
    keeps the `WORST` lowest of them, and all metrics without a slash in their name.
    """
    labels = {name: value for name, value in values.items() if name.startswith("f1/")}
    if len(labels) <= FEW:
        return dict(values)
    worst = sorted(labels, key=labels.__getitem__)[:WORST]
    return {name: value for name, value in values.items() if "/" not in name} | {name: labels[name] for name in worst}


def _model(run: "Run") -> str:
    return f"{type(run.model).__name__}, {_size(run.params):,} parameters"


def _progress(run: "Run") -> str:
    return f"step {run.step:,} of {run.experiment.steps:,}" if run.step else "not trained here"


def _settings(run: "Run") -> dict[str, str]:
    data = run.experiment.data
    return {
        "objective": type(run.objective).__name__,
        "data": f"{type(data.task).__name__} of {data.train}, {data.batch} rows a step",
        "optimizer": type(run.experiment.optimizer).__name__,
    }


def _last_evaluation(run: "Run") -> dict[str, Any] | None:
    return next((line for line in reversed(run.history) if line["split"] != "train"), None)


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("step", "split")}


def _size(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(map(_size, tree.values()))
    return int(np.prod(tree.shape))
