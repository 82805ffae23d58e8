"""Display of progress in a notebook: one bar and a curve, which are redrawn in place."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

INTERVAL = 0.5
"""Minimum number of seconds between two redraws."""
POINTS = 300
"""Maximum number of points of a curve. Of longer ones, every second point is left out until they fit."""
LINES = 400
"""Maximum number of lines of the log that are kept: the latest ones."""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 56, 24
"""Size of the chart, and of the space for the numbers at its left and bottom edges, in pixels."""
COLORS = ("#1f77b4", "#d9730d", "#2a9d5c", "#9b51e0")
STYLE = "font: 13px/1.5 system-ui, sans-serif; max-width: 660px"
PRE = "white-space: pre-wrap; margin: 4px 0; font-size: 12px"


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook. Imports nothing."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found is not None else None
    return getattr(shell, "kernel", None) is not None


class View:
    """Output of a notebook cell that shows the progress of work: a bar, the curve of the loss, the latest metrics, and
    the text of the log.
    """

    def __init__(self):
        self.phases: list[str] = []
        """Names of the running phases."""
        self.bar: tuple[str, int, int] | None = None
        """Name, number of completed steps and total number of steps of the bar. None without a bar."""
        self.remaining = ""
        """Estimated time until the bar is complete, as text. Empty if it is not known."""
        self._notes: list[str] = []
        self._log: list[str] = []
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._latest: dict[str, str] = {}
        self._handle: Any = None
        self._drawn = -math.inf

    def say(self, text: str, logged: bool) -> None:
        """Adds a line of text: to the log, which is folded, or to the text below the curve."""
        (self._log if logged else self._notes).append(text)
        del self._log[:-LINES]
        self.draw()

    def plot(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds the metrics of a step to the curve, and shows them as the latest ones.

        Args:
          step: number of training steps done.
          split: `train`, or the name of an evaluation.
          values: maps metric names to values. The curve shows the value of `loss`.
        """
        shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items() if "/" not in name]
        self._latest[split] = " · ".join(shown)
        if math.isfinite(values.get("loss", math.nan)):
            points = self._curves.setdefault(split, [])
            points.append((step, values["loss"]))
            if len(points) > POINTS:
                points[:] = _thinned(points)
        self.draw()

    def draw(self, now: bool = False) -> None:
        """Redraws the output if the last redraw was at least `INTERVAL` seconds ago, or `now` is True."""
        if not now and time.monotonic() - self._drawn < INTERVAL:
            return
        from IPython.display import HTML, display

        content = HTML(self.html())
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)
        self._drawn = time.monotonic()

    def html(self) -> str:
        """Returns the output as HTML."""
        parts = []
        if self.bar is not None:
            name, completed, total = self.bar
            parts.append(
                f'<div>{escape(name)} <progress value="{completed}" max="{total}" style="width: 50%"></progress> '
                f"{completed:,}/{total:,} {escape(self.remaining)}</div>"
            )
        if self.phases:
            parts.append(f"<div>{escape(' · '.join(self.phases))} …</div>")
        parts.append(chart(self._curves, "loss"))
        for split, text in self._latest.items():
            parts.append(f"<div><b>{escape(split)}</b> {escape(text)}</div>")
        if self._notes:
            parts.append(_pre(self._notes))
        if self._log:
            parts.append(f"<details><summary>log</summary>{_pre(self._log)}</details>")
        return f'<div style="{STYLE}">{"".join(parts)}</div>'


class Svg(str):
    """SVG text that a notebook displays as a picture."""

    def _repr_html_(self) -> str:
        return str(self)


def chart(curves: Mapping[str, Sequence[tuple[int, float]]], value: str = "", axis: str = "step") -> Svg:
    """Returns an SVG chart of curves, which a notebook displays. Empty if there is no curve with two points.

    Args:
      curves: pairs of a position and a value, such as a step and a loss, keyed by name.
      value: name of the values, such as `loss`.
      axis: name of the positions.
    """
    points = [point for curve in curves.values() for point in curve]
    if not any(len(curve) > 1 for curve in curves.values()):
        return Svg()
    steps, values = zip(*points, strict=True)
    first, last, least, most = min(steps), max(steps), min(values), max(values)

    def place(step: float, value: float) -> str:
        x = LEFT + (step - first) / (last - first or 1) * (WIDTH - LEFT - 8)
        y = 8 + (most - value) / (most - least or 1) * (HEIGHT - BOTTOM - 16)
        return f"{x:.1f},{y:.1f}"

    parts, grey = [], 'fill="currentColor" opacity="0.7" font-size="11"'
    for level in (least, (least + most) / 2, most):
        left, y = place(first, level).split(",")
        edge = f'x1="{left}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"'
        parts.append(f'<line {edge} stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end" {grey}>{level:.3g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x = place(step, least).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="{anchor}" {grey}>{escape(axis)} {step:,}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        color, line = COLORS[number % len(COLORS)], " ".join(place(*point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if name != "train":
            dots = (place(*point).split(",") for point in curve)
            parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{color}"/>' for x, y in dots]
        parts.append(
            f'<text x="{WIDTH - 10}" y="{20 + 15 * number}" text-anchor="end" fill="{color}" font-size="12">'
            f"{escape(f'{name} {value}'.strip())}</text>"
        )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="100%"'
    return Svg(f'<svg {size} role="img" aria-label="{escape(value)}">{"".join(parts)}</svg>')


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns the first and the last point of a curve, and about half of `POINTS` between them at equal distances."""
    distance = 2 * (points[-1][0] - points[0][0]) / POINTS
    kept = [points[0]]
    for point in points[1:-1]:
        if point[0] >= kept[-1][0] + distance:
            kept.append(point)
    return [*kept, points[-1]]


def _pre(lines: Sequence[str]) -> str:
    return f'<pre style="{PRE}">{escape(chr(10).join(lines))}</pre>'
