"""Sections of a report about what was trained, and the results of its evaluations."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jaxformer.html_page import details, escape, table
from jaxformer.progress import duration
from jaxformer.reports.records import MISSING, RunRecord, config_differences
from jaxformer.runs.summaries import headline

TYPED = 60
"""Maximum number of characters of the description of a data source."""


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """Returns a different name for each run: that of its folder or, if several have the same one, its path."""
    names = [record.name for record in records]
    return [name if names.count(name) == 1 else str(record.folder) for name, record in zip(names, records, strict=True)]


def facts(record: RunRecord) -> dict[str, str]:
    """Returns what a run trains, as texts keyed by their names."""
    config, found = record.config, {"folder": str(record.folder)}
    found["progress"] = f"step {record.step:,} of {record.steps:,} · {record.status}"
    found["model"] = _model(record)
    found["objective"] = f"{config.get('objective')} · task {config.get('data.task')}"
    for name, path in (("training data", "data.train"), ("held-out data", "data.validation")):
        found[name] = _source(record, path)
    if config.get("tokenizer"):
        vocabulary = next((value for path, value in config.items() if path.endswith("vocab") and value), None)
        found["tokenizer"] = str(config["tokenizer"]) + (
            f" · vocabulary of the model {vocabulary:,}" if vocabulary else ""
        )
    found["batch"] = f"{config.get('data.batch')} rows"
    if record.sessions:
        start = record.sessions[-1].start
        found["batch"] += f" · {start['units_per_step']:,} {start['unit']} a step"
    found["optimizer"] = _optimizer(config)
    found["initial parameters"] = _beginning(config)
    return found | _machine(record)


def facts_section(records: Sequence[RunRecord]) -> str:
    """Returns a table of what each run trains, and the fields of their configs: all of one run, or the differences of
    several.
    """
    all_facts = [facts(record) for record in records]
    rows = []
    for name in dict.fromkeys(name for one in all_facts for name in one):
        rows.append([escape(name), *(escape(one.get(name, MISSING)) for one in all_facts)])
    header = ["", *map(escape, names_of(records))] if len(records) > 1 else []
    parts = [table(header, rows)]
    if len(records) > 1:
        parts.append("<h3>Differences between the configs</h3>")
        differences = config_differences(records)
        rows = [[escape(path), *map(_value, values)] for path, values in differences.items()]
        parts.append(
            table(["field", *map(escape, names_of(records))], rows) if rows else "<p>The configs are equal.</p>"
        )
    for name, record in zip(names_of(records), records, strict=True):
        fields = table([], [[escape(path), _value(value)] for path, value in record.config.items()])
        parts.append(details(f"All {len(record.config)} fields of the config of {escape(name)}", fields))
    return "\n".join(parts)


def results_section(records: Sequence[RunRecord]) -> str:
    """Returns tables of the results of all evaluations: for one run also the lowest and the highest value of each
    metric, for several runs their last values side by side.
    """
    if not any(record.evaluations for record in records):
        return f"<p>{escape(without_evaluations(records[0]))}</p>"
    parts = []
    for split in dict.fromkeys(split for record in records for split in record.evaluations):
        steps = [record.latest(split).get("step") for record in records]
        if len(records) == 1:
            header = [escape(split), f"step {steps[0]:,}", "lowest", "at step", "highest", "at step"]
            rows = _own_rows(records[0], split)
        else:
            header = [escape(split), *(f"{escape(name)}" for name in names_of(records))]
            rows = [["step", *(f"{step:,}" if step is not None else MISSING for step in steps)]]
            rows += _side_by_side(records, split)
        latest = {escape(name): value for name, value in records[0].latest(split).items() if isinstance(value, float)}
        hidden, numbers = latest.keys() - headline(latest).keys(), range(1, len(header))
        parts.append(table(header, [row for row in rows if row[0] not in hidden], numbers))
        if more := [row for row in rows if row[0] in hidden]:
            parts.append(details(f"{len(more)} more metrics of single labels", table(header, more, numbers)))
    return "\n".join(parts)


def without_evaluations(record: RunRecord) -> str:
    """Returns a line that says why a run has no evaluations."""
    if record.config.get("data.validation") is None and not record.config.get("evaluations.0"):
        return f"{record.folder}: the run has no evaluations, because its config has no held-out data"
    if not record.lines:
        return f"{record.folder}: the run has no evaluations, because nothing was logged yet"
    every = record.config.get("evaluation.every")
    return f"{record.folder}: the run has no evaluations yet; it evaluates every {every} steps and at its end"


def number(value: float) -> str:
    """Formats a number with four significant digits."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def utc(seconds: float) -> str:
    """Formats a time, in seconds since 1970, as date and time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _own_rows(record: RunRecord, split: str) -> list[list[str]]:
    rows = []
    for metric in record.metrics(split):
        steps, values = record.series(split, metric)
        finite = [(value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        row = [escape(metric), number(values[-1])]
        for value, step in (min(finite), max(finite, key=lambda pair: pair[0])) if finite else ():
            row += [number(value), f"{step:,}"]
        rows.append(row)
    return rows


def _side_by_side(records: Sequence[RunRecord], split: str) -> list[list[str]]:
    rows = []
    for metric in dict.fromkeys(metric for record in records for metric in record.metrics(split)):
        values = [record.latest(split).get(metric) for record in records]
        rows.append([escape(metric), *(MISSING if value is None else number(value) for value in values)])
    return rows


def _value(value: Any) -> str:
    return escape("None" if value is None else value)


def _model(record: RunRecord) -> str:
    name = str(record.config.get("model"))
    if backbone := record.config.get("model.backbone"):
        name += f" of {backbone}"
    if not record.sessions:
        return name
    start = record.sessions[-1].start
    trained = f" ({start['trained']:,} trained)" if start["trained"] < start["parameters"] else ""
    return f"{name} · {start['parameters']:,} parameters{trained}"


def _source(record: RunRecord, path: str) -> str:
    config = record.config
    if config.get(path) is None:
        return "none"
    own = [value for name, value in config.items() if name.startswith(f"{path}.") and value]
    described = next((value for value in own if isinstance(value, str | list)), "")
    text = ", ".join(map(str, described)) if isinstance(described, list) else str(described)
    text = text if len(text) <= TYPED else f"{text[:TYPED]} …"
    found = f"{config[path]} {text}".strip()
    counts = [one.documents for name, one in (record.data.sources if record.data else {}).items() if _is(name, path)]
    return f"{found} · {sum(counts):,} documents" if counts else found


def _is(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}:")


def _optimizer(config: Mapping[str, Any]) -> str:
    parts = [str(config.get("optimizer"))]
    if (peak := config.get("optimizer.schedule.peak")) is not None:
        parts.append(f"learning rate {peak:g}")
    if warmup := config.get("optimizer.schedule.warmup"):
        parts.append(f"{warmup:,} steps of warmup")
    if decay := config.get("optimizer.schedule.decay"):
        parts.append(f"{decay} decay")
    return ", ".join(parts)


def _beginning(config: Mapping[str, Any]) -> str:
    if config.get("fork"):
        return f"state of the run {config['fork']}"
    seed = f"seed {config.get('seed')}"
    return f"{config['init']} · {seed}" if config.get("init") else f"random · {seed}"


def _machine(record: RunRecord) -> dict[str, str]:
    if not record.sessions:
        return {"devices": "not recorded"} if record.lines else {}
    first, last = record.sessions[0], record.sessions[-1]
    start = last.start
    mesh = " × ".join(f"{axis} {size}" for axis, size in start["mesh"].items())
    parts = [f"{start['devices']} × {start['device']}", f"mesh {mesh}" if mesh else ""]
    parts.append(f"{start['processes']} processes" if start["processes"] > 1 else "")
    seconds = sum(session.total for session in record.sessions)
    found = {"devices": " · ".join(filter(None, parts)), "started": utc(first.start["time"])}
    found["time"] = duration(seconds) + (f" in {len(record.sessions)} sessions" if len(record.sessions) > 1 else "")
    if memory := last.last.get("memory"):
        found["peak memory"] = f"{memory / 2**30:.2f} GiB a process"
    found["versions"] = " · ".join(f"{name} {version}" for name, version in start["versions"].items())
    return found
