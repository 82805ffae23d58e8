"""The commands `jaxformer report`, which writes an HTML page about one or several runs, `jaxformer runs`, which lists
the runs in a folder, and `jaxformer explain`, which writes a page about one prediction.
"""

import argparse
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from jaxformer import run_commands, storage
from jaxformer.command_arguments import Parser, add_step
from jaxformer.errors import InputError

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

WIDTH = 240
"""Number of characters in a line of `jaxformer runs` if the output is not a terminal."""


def report(arguments: list[str]) -> None:
    """Runs `jaxformer report`: writes one HTML file about one or several runs, which opens offline. Prints its path.
    For one run with a checkpoint, the page includes answers to held-out examples.
    """
    what = "Writes one HTML file that opens offline: what was trained, curves, times, results and examples."
    parser = Parser("report", what)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder; several runs are overlaid")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file to write; by default report.html in the run's folder, or, for several, here",
    )
    _add_open(parser)
    parser.add_argument("--no-examples", action="store_true", help="do not open the model to answer held-out examples")
    add_step(parser)
    options = parser.parse(arguments)
    if options.step is not None and (len(options.runs) > 1 or options.no_examples):
        raise InputError(f"--step {options.step}: selects the parameters that answer examples; expected one run")
    from jaxformer.progress import display, phase

    with display(stderr=True), phase("starting"):
        from jaxformer.reports import charts
        from jaxformer.reports.records import read_record
        from jaxformer.reports.report import REPORT, check_writable, write_report
        from jaxformer.reports.trained import without_evaluations

    folders = [storage.path(name) for name in options.runs]
    records = [read_record(folder) for folder in folders]
    out = storage.path(options.out) if options.out else (folders[0] if len(folders) == 1 else Path()) / REPORT
    _check_open(options, out)
    charts.check_library()
    check_writable(out)
    for record in records:
        if not record.evaluations:
            print(f"note: {without_evaluations(record)}", file=sys.stderr)
    run = None if len(records) > 1 or options.no_examples else _opened(options.runs[0], options.step)
    with display(stderr=True), phase("writing the report"):
        write_report(records, out, run)
    _announce(options, out)


def runs(arguments: list[str]) -> None:
    """Runs `jaxformer runs`: lists the runs in a folder, and compares their configs."""
    parser = Parser("runs", "Lists the runs in a folder with their progress and results, and compares their configs.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="a folder; by default runs")
    parser.add_argument(
        "--metric", metavar="NAME", nargs="+", default=[], help="metrics to list, such as loss or validation/loss"
    )
    parser.add_argument("--sort", metavar="COLUMN", default="started", help="column to sort by; by default started")
    parser.add_argument("--reverse", action="store_true", help="sort in descending order")
    parser.add_argument("--compare", action="store_true", help="also list the config fields in which the runs differ")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    options = parser.parse(arguments)
    from jaxformer.progress import display, phase

    with display(stderr=True), phase("reading the runs"):
        from rich.console import Console

        from jaxformer import strict_json
        from jaxformer.reports import listing

        found, problems = listing.find_runs(storage.path(options.folder))
    for problem in problems:
        print(f"note: left out: {problem}", file=sys.stderr)
    columns = listing.columns_of(found, options.metric)
    found = listing.sorted_runs(found, listing.sort_column(options.sort, found, columns), options.reverse)
    if options.json:
        for line in listing.as_json(found, columns):
            print(strict_json.dumps(line, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    console.print(listing.as_table(found, columns))
    if options.compare:
        console.print()
        console.print(listing.comparison(found) or "The configs are equal.")


def explain(arguments: list[str]) -> None:
    """Runs `jaxformer explain`: writes an HTML page that explains the prediction of a run for one input. Prints its
    path.
    """
    what = "Writes an HTML page that explains a prediction: attributions, attention, and the logit lens of decoders."
    parser = Parser("explain", what)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("input", metavar="INPUT", help="a text, or the path of a picture, clip or sound")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write, such as page.html")
    parser.add_argument("--label", metavar="NAME", help="the label, token or answer to explain; by default the best")
    _add_open(parser)
    add_step(parser)
    options = parser.parse(arguments)
    out = storage.path(options.out)
    _check_open(options, out)
    run = run_commands.opened(options.run, step=options.step)
    from jaxformer.explanations.explanation import explain
    from jaxformer.explanations.page import page
    from jaxformer.progress import display
    from jaxformer.reports.report import check_writable, write_page

    check_writable(out)
    with display(stderr=True):
        explanation = explain(run, options.input, options.label)
    write_page(out, page(explanation))
    _announce(options, out)


def _add_open(parser: Parser) -> None:
    """Adds the option `--open`, which opens the written page in the browser."""
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def _check_open(options: argparse.Namespace, out: Path) -> None:
    """Raises InputError if `--open` is given and the page is not a file of this machine."""
    if options.open and storage.is_remote(out):
        raise InputError(f"--open: {out} is not a local file; set --out")


def _announce(options: argparse.Namespace, out: Path) -> None:
    """Prints the path of a page that was written. With `--open`, also opens it in the browser."""
    print(out)
    if options.open:
        webbrowser.open(out.absolute().as_uri())


def _opened(folder: str, step: int | None) -> "Run | None":
    """Opens a run to answer examples. If that fails and the user has not chosen a step, prints why, and returns None,
    because the rest of the report does not need the parameters.
    """
    try:
        return run_commands.opened(folder, step=step)
    except InputError as error:
        if step is not None:
            raise
        print(f"note: no examples: {error}", file=sys.stderr)
        return None
