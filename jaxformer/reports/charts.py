"""Charts in HTML pages, drawn by plotly.js, with zoom and hover. The library is part of each page, compressed, so that
the page opens offline. It comes from the Python package plotly, the extra `report`.
"""

import base64
import dataclasses
import functools
import gzip
import importlib.util
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxformer import html_page
from jaxformer.errors import InputError
from jaxformer.html_page import escape

POINTS = 1000
"""Maximum number of points of a series. Of longer ones, the lowest and the highest value of each part are drawn."""
ALL_POINTS = 60_000
"""Maximum number of points of all charts of a page together."""
_SCRIPT = "plotly.min.js"


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart, or one color of its bars."""

    name: str
    """Name in the legend."""
    x: Sequence[float | str]
    """Positions of the values: steps, or for bars the names of the bars."""
    y: Sequence[float]
    """Values. Those that are not finite are gaps."""
    color: int = 0
    """Index of the color. Series of the same run have the same color in all charts."""
    dash: bool = False
    """Whether the line is dashed and has a mark at each value, as for evaluations."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with a title."""

    title: str
    """Title, as plain text."""
    series: tuple[Series, ...]
    """The lines, or the colors of the bars."""
    bars: bool = False
    """Whether to draw horizontal stacked bars instead of lines."""
    unit: str = ""
    """Unit of the values, shown when a value is selected."""
    logarithmic: bool = False
    """Whether the switch for logarithmic axes applies to this chart."""
    wide: bool = False
    """Whether the chart has the width of the page."""


STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
.charts > figure.wide { grid-column: 1 / -1 }
figure.chart { padding: .6rem .4rem .2rem }
figure.chart h3 { margin: 0 .4rem }
figure.chart > div { height: 19rem }
"""


def check_library() -> None:
    """Raises InputError if the package plotly is not installed."""
    _script_path()


def charts_html(charts: Sequence[Chart]) -> str:
    """Returns the HTML of a grid of charts. The page must end with `scripts`."""
    figures = []
    for chart in charts:
        height = f' style="height: {10 + 2.2 * _count_bars(chart):.0f}rem"' if chart.bars else ""
        script = html_page.data(_plain(chart))
        wide = " wide" if chart.wide else ""
        drawn = f'<div role="img" aria-label="{escape(chart.title)}"{height}></div>'
        figures.append(f'<figure class="chart{wide}"><h3>{escape(chart.title)}</h3>{drawn}{script}</figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


def scripts() -> str:
    """Returns the HTML of the scripts that draw the charts of a page: the compressed library, and our code."""
    code = resources.files("jaxformer.reports").joinpath("charts.js").read_text(encoding="utf-8")
    return f'<script type="text/plain" id="plotly">{_library()}</script>\n<script>{code}</script>'


def thinned(x: Sequence[Any], y: Sequence[float], points: int) -> tuple[list[Any], list[float]]:
    """Reduces a series to at most `points` points. Divides it into equal parts, and keeps the lowest and the highest
    value of each, so that single outliers stay visible. A part with a value that is not finite keeps one such value.
    """
    if len(y) <= points:
        return list(x), list(y)
    parts = max(1, points // 3)
    kept: set[int] = {0, len(y) - 1}
    for part in range(parts):
        indices = range(part * len(y) // parts, (part + 1) * len(y) // parts)
        finite = [index for index in indices if math.isfinite(y[index])]
        kept |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)} if finite else set()
        kept |= set([index for index in indices if not math.isfinite(y[index])][:1])
    chosen = sorted(kept)
    return [x[index] for index in chosen], [y[index] for index in chosen]


def thin(charts: Sequence[Chart]) -> list[Chart]:
    """Reduces the series of all charts of a page, so that the page stays small however long the runs are."""
    points = max(60, min(POINTS, ALL_POINTS // max(1, sum(len(chart.series) for chart in charts))))
    found = []
    for chart in charts:
        series = []
        for one in chart.series:
            x, y = thinned(one.x, one.y, points)
            series.append(dataclasses.replace(one, x=x, y=y))
        found.append(dataclasses.replace(chart, series=tuple(series)))
    return found


def _plain(chart: Chart) -> dict[str, Any]:
    series = [{**dataclasses.asdict(one), "y": [_short(value) for value in one.y]} for one in chart.series]
    return {"series": series, "bars": chart.bars, "unit": chart.unit, "logarithmic": chart.logarithmic}


def _count_bars(chart: Chart) -> int:
    return len({name for one in chart.series for name in one.x})


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _script_path() -> Path:
    found = importlib.util.find_spec("plotly")
    for home in (found and found.submodule_search_locations) or ():
        if (path := Path(home, "package_data", _SCRIPT)).is_file():
            return path
    raise InputError("a report needs plotly, which is not installed; pip install 'jaxformer[report]'")


@functools.cache
def _library() -> str:
    return base64.b64encode(gzip.compress(_script_path().read_bytes(), 9, mtime=0)).decode()
