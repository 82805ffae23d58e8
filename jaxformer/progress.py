"""Progress display for long work: named phases, a training bar, and lines that stay above both.

    with display():
        with phase("training the tokenizer"):
            ...

In a terminal, the last lines show the running phases with their time. In a notebook, the output of the cell shows the
phases, a bar and the curve of the loss (`notebook`). Elsewhere, a phase that takes more than two
seconds prints one line to standard error. Without an open display, phases show nothing.
"""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from jaxformer import notebook

SILENCE = 2.0
"""Number of seconds after which a running phase prints its name on a line, if the output is not a terminal."""

_shown: "Display | None" = None


class Display:
    """Shows the running phases, a progress bar and lines of text on a console."""

    def __init__(self, quiet: bool = False, stderr: bool = False):
        """Creates a display.

        Args:
          quiet: whether to print nothing.
          stderr: whether to draw on standard error, for commands whose results go to standard output. If standard error
            is not a terminal, phases are not shown.
        """
        # The file is fixed: some libraries redirect standard output while they work.
        self._console = Console(file=sys.stderr if stderr else sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._view = notebook.View() if notebook.is_notebook() and not (quiet or stderr) else None
        self.live = self._console.is_terminal and not quiet and self._view is None
        """Whether phases and the bar are redrawn continually in a terminal."""
        self._lines = not (quiet or stderr or self.live or self._view)
        self._keeps_times = self.live and not stderr
        count = TextColumn("{task.fields[count]}")
        self._phases = Progress(SpinnerColumn(), TextColumn("{task.description}"), count, TimeElapsedColumn())
        name, bar = TextColumn("[bold]{task.description}"), BarColumn(bar_width=24)
        self._bar = Progress(name, bar, MofNCompleteColumn(), TextColumn("eta"), Remaining())
        self._task = None

    @contextlib.contextmanager
    def open(self) -> Iterator["Display"]:
        """Context manager that draws the phases and the bar in a terminal during its block."""
        with contextlib.ExitStack() as stack:
            if self.live:
                drawn = Group(self._phases, self._bar)
                live = Live(
                    drawn, console=self._console, refresh_per_second=8, transient=True, vertical_overflow="visible"
                )
                stack.enter_context(live)
            try:
                yield self
            finally:
                if self._view is not None:
                    self._view.draw(now=True)

    def say(self, text: str) -> None:
        """Prints text that stays on the screen above the phases and the bar."""
        if self._view is not None:
            self._view.say(text, logged=self._task is not None)
            return
        self._console.print(text, markup=False)

    def show(self, renderable: object) -> None:
        """Prints a table, or any other object that Rich can render. It stays on the screen above the phases and the
        bar.
        """
        if self._view is not None:
            text = io.StringIO()
            Console(file=text, width=100, force_jupyter=False).print(renderable)
            self.say(text.getvalue().rstrip())
            return
        self._console.print(renderable)

    def plot(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """In a notebook, adds the metrics of a step to the curve. Elsewhere, does nothing. See `notebook.View.plot`."""
        if self._view is not None:
            self._view.plot(step, split, values)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Context manager that shows the name of a phase during its block. Yields a function that takes a text about
        the progress, such as "12 batches", and shows it.
        """
        began, task = time.monotonic(), self._phases.add_task(name, total=None, count="")
        timer = threading.Timer(SILENCE, self._errors.print, [f"{name} …"], {"markup": False})
        timer.daemon = True
        if self._lines:
            timer.start()
        self._show_phases(name)
        try:
            yield lambda count: self._phases.update(task, count=count)
        finally:
            timer.cancel()
            self._phases.remove_task(task)
            self._show_phases()
        if self._keeps_times and (seconds := time.monotonic() - began) > SILENCE:
            self._console.print(f"{name}: {duration(seconds)}", style="dim", markup=False)

    def _show_phases(self, begun: str | None = None) -> None:
        """Shows the names of the running phases in a notebook. Redraws the output at once if a phase has begun."""
        if self._view is not None:
            self._view.phases = [task.description for task in self._phases.tasks]
            self._view.draw(now=begun is not None)

    def start_bar(self, name: str, total: int, completed: int) -> None:
        """Shows a progress bar of `total` steps, beginning at `completed`."""
        self._task = self._bar.add_task(name, total=total, completed=completed)
        self._show_bar(completed)

    def advance(self, completed: int) -> None:
        """Sets the number of completed steps that the bar shows."""
        if self._task is not None:
            self._bar.update(self._task, completed=completed)
            self._show_bar(completed)

    def _show_bar(self, completed: int) -> None:
        """Shows the bar in a notebook."""
        if self._view is not None:
            task = self._bar.tasks[0]
            self._view.bar = task.description, completed, int(task.total or 0)
            self._view.remaining = f"eta {duration(self.remaining)}" if self.remaining else ""
            self._view.draw()

    def end_bar(self) -> None:
        """Removes the progress bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    @property
    def remaining(self) -> float | None:
        """Estimated number of seconds until all steps of the progress bar are completed. None if there is no bar, or
        its speed is not known yet.
        """
        return None if self._task is None else self._bar.tasks[0].time_remaining


@contextlib.contextmanager
def display(quiet: bool = False, stderr: bool = False) -> Iterator[Display]:
    """Context manager that opens a display for the phases of its block, or uses the display that is already open."""
    global _shown
    if _shown is not None:
        yield _shown
        return
    _shown = Display(quiet, stderr)
    try:
        with _shown.open() as shown:
            yield shown
    finally:
        _shown = None


@contextlib.contextmanager
def phase(name: str) -> Iterator[Callable[[str], None]]:
    """Context manager that shows a phase on the open display, if there is one. Also usable as a decorator. See
    `Display.phase`.
    """
    if _shown is None:
        yield lambda count: None
        return
    with _shown.phase(name) as update:
        yield update


def duration(seconds: float) -> str:
    """Formats a number of seconds: 4.2 s, 42 s, 3:07, 1:02:45."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
