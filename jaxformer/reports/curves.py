"""Charts of a report: losses, metrics, learning rate, gradient norm, speed, and what the time was spent on."""

from collections.abc import Sequence

from jaxformer.html_page import details, escape, table
from jaxformer.progress import duration
from jaxformer.reports.charts import Chart, Series
from jaxformer.reports.records import TRAIN, RunRecord
from jaxformer.reports.trained import names_of, number, utc
from jaxformer.runs.sessions import KINDS

MOST = 24
"""Maximum number of charts of metrics. The tables contain all metrics."""
ROWS = 50
"""Maximum number of rows of the tables of sessions and of skipped steps."""
_PER_SECOND, _UTILIZATION = "_per_second", "model_flops_utilization"
_TRAINING = ("learning_rate", "gradient_norm", "skipped_steps", _UTILIZATION)


def metric_charts(records: Sequence[RunRecord]) -> list[Chart]:
    """Returns a chart for each loss and metric, with the values of training steps and of all evaluations. Metrics of
    single labels, such as `f1/positive`, have no charts.
    """
    names = dict.fromkeys(["loss"])
    for record in records:
        for split in (TRAIN, *record.evaluations):
            names |= dict.fromkeys(name for name in record.metrics(split) if "/" not in name)
    chosen = [name for name in names if name not in _TRAINING and not name.endswith(_PER_SECOND)]
    charts = [
        Chart(_title(name), series, logarithmic="loss" in name or "perplexity" in name)
        for name in chosen
        if (series := _series(records, name))
    ]
    return charts[:MOST]


def training_charts(records: Sequence[RunRecord]) -> list[Chart]:
    """Returns charts of the learning rate, the gradient norm, the speed and the utilization of the devices."""
    speeds = dict.fromkeys(name for record in records for name in record.metrics(TRAIN) if name.endswith(_PER_SECOND))
    charts = [
        Chart("learning rate", _series(records, "learning_rate")),
        Chart("gradient norm", _series(records, "gradient_norm"), logarithmic=True),
        *(Chart(_title(name), _series(records, name)) for name in speeds),
        Chart("model FLOPs utilization (MFU)", _series(records, _UTILIZATION)),
    ]
    return [chart for chart in charts if chart.series]


def time_chart(records: Sequence[RunRecord]) -> Chart | None:
    """Returns a chart of the time that each run has spent on each kind of work. None if it was not recorded."""
    named = [pair for pair in zip(names_of(records), records, strict=True) if pair[1].sessions]
    if not named:
        return None
    longest = max(sum(session.total for session in record.sessions) for _, record in named)
    unit, seconds = next(
        pair for pair in ((" h", 3600), (" min", 60), (" s", 1)) if longest >= 2 * pair[1] or pair[1] == 1
    )
    series = []
    for index, kind in enumerate((*KINDS, "other")):
        values = [sum(session.seconds[kind] for session in record.sessions) / seconds for _, record in named]
        series.append(Series(kind, [name for name, _ in named], values, index))
    return Chart("time by kind of work", tuple(series), bars=True, unit=unit, wide=True)


def time_tables(records: Sequence[RunRecord]) -> str:
    """Returns tables of the sessions, the skipped steps and the accepted changes of the data of each run."""
    parts = []
    for name, record in zip(names_of(records), records, strict=True):
        title = f" of {escape(name)}" if len(records) > 1 else ""
        if record.sessions:
            parts.append(f"<h3>Sessions{title}</h3>{_sessions(record)}")
        else:
            parts.append(f"<p>The sessions{title} are not recorded.</p>")
        if record.skips:
            parts.append(f"<h3>Skipped steps{title}</h3>{_skips(record)}")
        if record.data and record.data.accepted:
            changes = "".join(f"<li>{escape(line)}</li>" for line in record.data.accepted)
            parts.append(f"<h3>Accepted changes of the data{title}</h3><ul>{changes}</ul>")
    kinds = "".join(f"<li><b>{kind}</b>: {escape(text)}</li>" for kind, text in KINDS.items())
    parts.append(details("What the kinds of work are", f"<ul>{kinds}</ul>"))
    return "\n".join(parts)


def _sessions(record: RunRecord) -> str:
    rows, before = [], None
    for index, session in enumerate(record.sessions, 1):
        pause = session.start["time"] - before.last["time"] if before else None
        repeated = max(0, before.last_step - session.first_step) if before else 0
        seconds = session.seconds
        rows.append(
            [
                str(index),
                f'<span class="nowrap">{utc(session.start["time"])}</span>',
                f'<span class="nowrap">{session.first_step:,} to {session.last_step:,}</span>',
                duration(session.total),
                *(duration(seconds[kind]) if seconds[kind] else "0" for kind in KINDS),
                "" if pause is None else duration(max(0.0, pause)),
                f"{repeated:,}" if repeated else "0",
                escape(session.ended or ("running, or killed" if index == len(record.sessions) else "killed")),
            ]
        )
        before = session
    header = ["session", "started", "from step", "time", *KINDS, "pause before", "steps repeated", "ended"]
    return _shortened(header, rows, range(3, len(header) - 1))


def _skips(record: RunRecord) -> str:
    names = dict.fromkeys(name for skip in record.skips for name in skip if name not in ("step", "lanes"))
    rows = []
    for skip in record.skips:
        rows.append([f"{skip['step']:,}", *(number(float(skip[name])) if name in skip else "" for name in names)])
    header = ["step", *(escape(_title(name)) for name in names)]
    more = "<p><small>jaxformer replay RUN --step N prints the batch of a step.</small></p>"
    return _shortened(header, rows, range(1, len(header))) + more


def _shortened(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    left_out = len(rows) - ROWS
    note = f"<p><small>The first {left_out:,} are left out.</small></p>" if left_out > 0 else ""
    return note + table(header, rows[-ROWS:], numbers)


def _series(records: Sequence[RunRecord], metric: str) -> tuple[Series, ...]:
    found = []
    for index, (name, record) in enumerate(zip(names_of(records), records, strict=True)):
        for place, split in enumerate((TRAIN, *record.evaluations)):
            steps, values = record.series(split, metric)
            if steps:
                label = split if len(records) == 1 else f"{name} · {split}"
                color = place if len(records) == 1 else index
                found.append(Series(label, steps, values, color, dash=split != TRAIN))
    return tuple(found)


def _title(name: str) -> str:
    return name.replace(_PER_SECOND, " per second").replace("_", " ")
