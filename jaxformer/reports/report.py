"""Reports of one or several runs: one HTML file that opens offline, with what was trained, curves, what the time was
spent on, results, examples and the certificate.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jaxformer
from jaxformer import html_page, storage
from jaxformer.errors import InputError
from jaxformer.html_page import escape
from jaxformer.predictors import speech_page
from jaxformer.reports import certificate, charts, curves
from jaxformer.reports.records import RunRecord
from jaxformer.reports.trained import facts_section, names_of, results_section
from jaxformer.runs.folder import write_at_once

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

REPORT = "report.html"
"""Name of the report in a run's folder."""
_LOGARITHMIC = '<p><label><input type="checkbox" id="logarithmic"> logarithmic axes for losses and norms</label></p>'


def write_report(records: Sequence[RunRecord], path: Path, run: "Run | None" = None) -> None:
    """Writes the report of one or several runs.

    Args:
      records: records of the runs.
      path: file to write, which may be in a bucket. It is written at once, so that a page that is open in a browser can
        be reloaded at any time.
      run: the run of the only record, whose answers to held-out examples are shown. If None, no examples are shown.

    Raises:
      InputError: If the package plotly is not installed, or the file cannot be written, or it exists and is not a page
        of jaxformer.
    """
    text = report(records, run)
    check_writable(path)
    write_page(path, text)


def write_page(path: Path, text: str) -> None:
    """Writes an HTML page at once. Raises InputError if the file cannot be written."""
    if storage.is_remote(path):
        with storage.reported(path, "cannot be written"):
            path.write_text(text, encoding="utf-8")
        return
    try:
        write_at_once(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Raises InputError if a file exists and is not a page of jaxformer, which must not be overwritten."""
    with storage.reported(path):
        if not storage.is_remote(path) and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise InputError(f"{path}: a folder; expected the name of a file, such as {path}/{REPORT}")
        if path.exists() and not html_page.is_page(path.read_bytes()[:10_000].decode(errors="replace")):
            raise InputError(f"{path}: exists, and is not a page of jaxformer; give another name")


def report(records: Sequence[RunRecord], run: "Run | None" = None) -> str:
    """Returns the report of one or several runs as HTML. Same arguments as `write_report`."""
    if len(records) == 1:
        title, status = records[0].name, records[0].status
        kind = "" if status == "done" else " open"
        subtitle = f'<p><span class="verdict{kind}">{escape(status)}</span></p>'
    else:
        title, subtitle = f"{len(records)} runs", f"<p>{escape(', '.join(names_of(records)))}</p>"
    sections = {name: content for name, content in _sections(records, run).items() if content}
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    parts = [f'<h2 id="{_anchor(name)}">{escape(name)}</h2>\n{content}' for name, content in sections.items()]
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    end = f"<p><small>Written on {written} by jaxformer {jaxformer.__version__}</small></p>"
    body = "\n".join([f"<h1>{escape(title)}</h1>{subtitle}<nav>{links}</nav>", *parts, end])
    players = speech_page.SCRIPT if 'class="player"' in body else ""
    style = charts.STYLE + speech_page.STYLE
    return html_page.page(f"{title} · jaxformer report", body, style, charts.scripts() + players)


def _sections(records: Sequence[RunRecord], run: "Run | None") -> dict[str, str]:
    """Returns the HTML of each section by its name. It is empty if there is nothing to show."""
    metrics, training = curves.metric_charts(records), curves.training_charts(records)
    time = curves.time_chart(records)
    thin = charts.thin([*metrics, *training])
    metrics, training = thin[: len(metrics)], thin[len(metrics) :]
    found = {"What was trained": _problems(records) + facts_section(records), "Results": results_section(records)}
    if run is not None:
        from jaxformer.reports.examples import examples_section

        found["Examples"] = examples_section(run)
    found["Curves"] = _LOGARITHMIC + charts.charts_html(metrics) if metrics else ""
    found["Training"] = charts.charts_html(training) if training else ""
    found["Time"] = (charts.charts_html([time]) if time else "") + curves.time_tables(records)
    for name, record in zip(names_of(records), records, strict=True):
        if record.certificate is not None:
            title = "Certificate" if len(records) == 1 else f"Certificate of {name}"
            found[title] = certificate.section(record.certificate)
    return found


def _problems(records: Sequence[RunRecord]) -> str:
    lines = [problem for record in records for problem in record.problems]
    return "".join(f'<p class="muted">{escape(line)}</p>' for line in lines)


def _anchor(name: str) -> str:
    return escape(name.lower().replace(" ", "-"))
