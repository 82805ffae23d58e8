"""Logs of a run: lines and a progress bar in the terminal, `metrics.jsonl`, and TensorBoard."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from rich.table import Table

from jaxformer import digests, progress, strict_json
from jaxformer.config import Experiment, Log
from jaxformer.errors import InputError
from jaxformer.evaluations import flat_results, result_key
from jaxformer.metrics.averages import Average
from jaxformer.metrics.base import MetricStates
from jaxformer.metrics.means import Mean
from jaxformer.progress import duration
from jaxformer.reports.records import read_config, read_record
from jaxformer.reports.report import REPORT, write_report
from jaxformer.runs.folder import DAMAGED
from jaxformer.runs.history import METRICS, SKIPPED, read_history, rewrite_history
from jaxformer.runs.next_command import next_command, program
from jaxformer.runs.run import Run
from jaxformer.runs.summaries import headline
from jaxformer.training.board import Board
from jaxformer.training.log_files import LogFiles
from jaxformer.training.session_log import SessionLog
from jaxformer.training.skips import Skip
from jaxformer.training.state import TrainState, count, split_frozen
from jaxformer.training.trackers import Tracker, open_trackers
from jaxformer.training.utilization import memory_in_use, peak_flops, step_flops

PER_SECOND = "_per_second"
UTILIZATION = "model_flops_utilization"


class Meter:
    """Collects the losses and metrics of the training steps between two log entries, and measures the speed."""

    def __init__(self, experiment: Experiment, began: float):
        """Starts to measure the time.

        Args:
          experiment: the experiment that is trained.
          began: time at which training was started (`time.monotonic`). The time to the first step is measured from it,
            and includes loading of data and compilation.
        """
        self._experiment, self._began = experiment, began
        self._unit, in_row = experiment.data.task.unit
        self._in_step = experiment.data.batch * in_row
        objective, model = experiment.objective, experiment.model
        self._metrics = (*objective.all_metrics(model), Average("gradient_norm"))
        self._means: list[dict[str, Mean]] = []
        self._timed = 0
        self.first_step: float | None = None
        """Number of seconds from the start of training to the end of the first step. None before that."""

    def add(self, means: dict[str, Mean]) -> None:
        """Adds the losses and metrics of a training step, as weighted means. The device may still be computing them."""
        self._means.append(means)
        self._timed += 1
        if self.first_step is None:
            jax.block_until_ready(means)
            self.first_step = time.monotonic() - self._began
            self.restart()
        # Waits for the step before the last, so that the device always has work but the queue is short at a stop.
        jax.block_until_ready(self._means[-3:-2])

    def restart(self) -> None:
        """Restarts the clock, so that the time spent on something other than training, such as an evaluation, is not
        measured.
        """
        self._timed, self._since = 0, time.monotonic()

    def report(self, step: int, state: TrainState) -> dict[str, float]:
        """Returns the metrics, learning rate and speed of the steps since the last report or the start of this process,
        keyed by name. Waits until the device has computed them.
        """
        states = MetricStates(self._metrics)
        for terms in jax.device_get(self._means):
            states.add(terms)
        speed = self._timed * self._in_step / (time.monotonic() - self._since)
        self._means = []
        self.restart()
        good = step - int(state.skipped)
        return states.compute() | {
            "learning_rate": float(self._experiment.optimizer.schedule(self._experiment.steps)(good - 1)),
            "skipped_steps": int(state.skipped),
            f"{self._unit.replace(' ', '_')}{PER_SECOND}": speed,
            **self._utilization(speed / self._in_step, state),
        }

    def _utilization(self, steps_per_second: float, state: TrainState) -> dict[str, float]:
        """Returns a dict with one metric, the fraction of the devices' peak FLOPs that training uses. Empty if their
        peak is unknown.
        """
        peak, experiment = peak_flops(jax.devices()[0]), self._experiment
        if peak is None:
            return {}
        trained = count(split_frozen(experiment, state.params)[0]) / count(state.params)
        data = experiment.data
        operations = step_flops(experiment.model, data.task.row, data.batch, trained)
        return {UTILIZATION: steps_per_second * operations / (peak * jax.device_count())}


def describe(experiment: Experiment, state: TrainState, mesh: jax.sharding.Mesh) -> str:
    """Describes the devices, mesh, parameters, and tokens or images per step, on one line."""
    device, usual = mesh.devices.flat[0], ("data", "fsdp", "tensor")
    used = {axis: size for axis, size in mesh.shape.items() if size > 1 or axis in usual}
    sizes = " × ".join(f"{axis} {size}" for axis, size in used.items())
    parameters, trained = count(state.params), count(split_frozen(experiment, state.params)[0])
    of_them = f" ({trained:,} trained)" if trained < parameters else ""
    unit, in_row = experiment.data.task.unit
    start = f", from step {int(state.step):,}" if int(state.step) else ""
    return (
        f"{mesh.devices.size} × {device.device_kind} · mesh {sizes} · {parameters:,} parameters{of_them} · "
        f"{experiment.data.batch * in_row:,} {unit} a step · {experiment.steps:,} steps{start}"
    )


class Logs:
    """Context manager that writes the logs of a run. Only process 0 writes them."""

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int,
        quiet: bool = False,
        moved: Callable[[], str] = lambda: "",
        settings: Log = Log(),
    ):
        """Opens the logs at step `start`. Lines that an earlier process logged for later steps are removed.

        Args:
          folder: the run's folder.
          steps: number of steps of the run.
          start: number of steps already done.
          quiet: whether to print nothing.
          moved: function that returns the reason why this process may no longer write to the folder, or an empty
            string.
          settings: whether to write reports, and which experiment trackers to use.
        """
        self._writes, self._steps, self._started = jax.process_index() == 0, steps, False
        self._folder, self._reports = folder, settings.report and self._writes
        self._quiet, self._start, self._stack = quiet or not self._writes, start, contextlib.ExitStack()
        self.evaluated, self.results = 0, None
        """Step of the latest evaluation, and the values of its metrics, with keys like `validation/loss`. 0 and None
        before the first evaluation.
        """
        self.history: list[dict[str, float]] = []
        """Values of the metrics of all evaluations so far, with keys like `validation/loss`. One dict per evaluated
        step.
        """
        self._files = LogFiles(folder, moved) if self._writes else None
        home = folder if self._files is None else self._files.home
        history, self._damaged = read_history(home / METRICS, start)
        if self._writes:
            rewrite_history(home, start)
            rewrite_history(home, start, SKIPPED)
        for line in history:
            split, step = line.pop("split"), line.pop("step")
            if split != "train":
                self._note(step, {split: line})
        if jax.process_count() > 1:
            self.evaluated = start  # Only a single process makes up for an interrupted evaluation.
        if self._writes:
            self._lines = (home / METRICS).open("a", encoding="utf-8", buffering=1)
            self._board = Board(home / "tensorboard", start + 1)
            self.flush()
        self._trackers: list[Tracker] = []
        if self._writes and settings.trackers:
            self._trackers = open_trackers(settings.trackers, folder, home, read_config(folder))
        self.sessions = SessionLog(home if self._writes else None)
        """Record of what the run is trained on, and of what its time is spent on."""

    def __enter__(self) -> "Logs":
        self._display = self._stack.enter_context(progress.display(self._quiet))
        for line in self._damaged:
            self.say(f"{line}; it is left out, and kept in {DAMAGED}/{METRICS}")
        self._display.start_bar("training", self._steps, self._start)
        self._compiling = self._stack.enter_context(contextlib.ExitStack())
        self._compiling.enter_context(self._display.phase("compiling the training step"))
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._display.end_bar()
        self._stack.close()
        if self._files is not None:
            self._lines.close()
            self._board.close()
            self.sessions.close()
            for tracker in self._trackers:
                tracker.close()
            # An error that is being raised says more than a failure to copy, which it may have caused.
            with contextlib.nullcontext() if kind is None else contextlib.suppress(InputError):
                self._files.close()

    def flush(self) -> None:
        """Waits until everything that was logged is in the run's folder."""
        if self._files is not None and self._files.is_copied:
            self._files.flush()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._display.say(text)

    def advance(self, step: int, meter: Meter) -> None:
        """Moves the progress bar to a step. The first call also prints the time from the start of training to the end
        of the first step, which `meter` has measured.
        """
        if self._started is False:
            self._started = True
            self._compiling.close()
            self.say(f"first step after {meter.first_step:.1f} s")
        self._display.advance(step)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds metrics to `metrics.jsonl` and TensorBoard, and prints a summary of them. Stores evaluation results in
        `results` and `history`.

        Args:
          step: step of the metrics.
          split: `train`, or the name of an evaluation.
          values: maps metric names to values.
        """
        if split != "train":
            self._note(step, {split: values})
        self._write(step, {split: values})

    def write_skip(self, skip: Skip) -> None:
        """Adds a line about a skipped step to `skipped.jsonl`, and prints a message about it."""
        if self._files is None:
            return
        with (self._files.home / SKIPPED).open("a", encoding="utf-8") as file:
            file.write(digests.seal_line(strict_json.dumps(skip.line())) + "\n")
        norm = skip.values["gradient_norm"]
        self.say(f"step {skip.step} skipped: its gradient norm is {norm}; {program()} replay RUN --step {skip.step}")

    def write_evaluations(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Writes the metrics of all evaluations at a step. `results` maps names of evaluations to metrics."""
        self._note(step, results)
        self._write(step, results)
        self.report()

    def report(self, run: Run | None = None) -> None:
        """Writes the report of the run to its folder, if the experiment sets `log.report`. A failure is printed, and
        does not end the training.

        Args:
          run: the trained run, whose answers to held-out examples are shown. If None, the report has no examples.
        """
        if not self._reports:
            return
        try:
            self.flush()
            write_report([read_record(self._folder)], self._folder / REPORT, run)
        except (InputError, OSError) as error:
            self.say(f"the report is not written: {error}")

    def _note(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        values = flat_results(results)
        if self.history and self.evaluated == step:
            self.history[-1] |= values
        else:
            self.history.append(values)
        self.evaluated, self.results = step, self.history[-1]

    def _write(self, step: int, lines: Mapping[str, Mapping[str, float]]) -> None:
        if not self._writes:
            return
        numbers = {split: {name: float(x) for name, x in values.items()} for split, values in lines.items()}
        texts = [strict_json.dumps({"step": step, "split": split, **values}) for split, values in numbers.items()]
        # In one write, so that a kill leaves all lines or none.
        self._lines.write("".join(f"{digests.seal_line(text)}\n" for text in texts))
        width = len(str(self._steps))
        for split, values in numbers.items():
            self._display.plot(step, split, values)
            named = {f"{split}/{name}": value for name, value in values.items()}
            self._board.write(step, named)
            for tracker in self._trackers:
                tracker.log(step, named)
            shown = (
                train_summary(values, self._display.remaining) if split == "train" else f"{split}  {summary(values)}"
            )
            self.say(f"step {step:{width}}/{self._steps}  {shown}")
        if self._files is not None:
            self._files.copy_soon()

    def end(self, run: Run, results: Mapping[str, float] | None) -> None:
        """Prints the results `results` of the last evaluation as tables, predictions for some held-out examples, and a
        command to try the run. Writes the report of the run if the experiment sets `log.report`.
        """
        # Process 0 cannot compute answers alone on a mesh of all processes.
        self.report(run if jax.process_count() == 1 else None)
        if self._quiet:
            return
        self._display.end_bar()
        results = results or {}
        for name in run.experiment.all_evaluations if results else ():
            prefix = result_key(name, "")
            values = {key.removeprefix(prefix): x for key, x in results.items() if key.startswith(prefix)}
            self._show_table(run, name, values)
            if examples := run.demonstrate():
                self.say("\n".join(["held-out examples:", *examples]))
        if self._reports:
            self.say(f"The report is {run.folder / REPORT}.")
        self.say(f"The run is in {run.folder}. Try it:\n{next_command(run)}")

    def _show_table(self, run: Run, name: str, values: Mapping[str, float]) -> None:
        table = Table(title=f"{name} after {run.step:,} steps", title_justify="left", show_header=False)
        shown = headline(values)
        for metric, value in shown.items():
            table.add_row(metric.replace("_", " "), f"{value:.4f}")
        self._display.show(table)
        if len(shown) < len(values):
            more = f"{len(values) - len(shown)} more metrics of single labels"
            self.say(f"{more}: {program()} evaluate {run.folder} --all")


def summary(values: Mapping[str, float]) -> str:
    """Formats metrics on one line, without those of single classes, such as `f1/positive`."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if "/" not in name)


def train_summary(values: Mapping[str, float], remaining: float | None) -> str:
    """Formats metrics of training steps on one line. `remaining` is the estimated number of seconds to the end of
    training. None if it is not known.
    """
    [(name, speed)] = [pair for pair in values.items() if pair[0].endswith(PER_SECOND)]
    parts = [
        f"loss {values['loss']:.4f}",
        f"lr {values['learning_rate']:.2e}",
        f"grad norm {values['gradient_norm']:.3g}",
        f"{speed:,.0f} {name.removesuffix(PER_SECOND).replace('_', ' ')}/s",
    ]
    if UTILIZATION in values:
        parts.append(f"{values[UTILIZATION]:.0%} of peak")
    if values["skipped_steps"]:
        parts.append(f"{values['skipped_steps']:.0f} skipped")
    parts.append(f"{memory_in_use() / 2**30:.1f} GiB")
    if remaining:
        parts.append(f"eta {duration(remaining)}")
    return "  ".join(parts)
