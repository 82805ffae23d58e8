"""The display of progress, in a terminal and elsewhere."""

import itertools
import math
import re
import sys
import time
import types

import jax
import pytest
from rich.table import Table

from jaxformer import notebook, progress
from jaxformer.progress import Display, display, duration, phase
from jaxformer.runs.summaries import headline
from jaxformer.training import utilization
from jaxformer.training.logs import UTILIZATION, train_summary


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Makes standard output a terminal; gives what was written there."""
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm-256color", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    return lambda: capsys.readouterr().out


def test_a_terminal_shows_phases_and_the_bar_and_keeps_lines(terminal):
    with display() as shown:
        assert shown.live
        shown.say("a line [bold]")
        shown.start_bar("training", 20, 5)
        with phase("evaluating") as show:
            show("batch 3")
            time.sleep(0.3)
        shown.advance(10)
        time.sleep(0.3)
    text = terminal()
    assert "a line [bold]\n" in text
    assert re.search("evaluating batch 3 .*0:00:00", text) and "10/20" in text and "eta" in text
    assert progress._shown is None


def test_a_long_phase_leaves_its_time_in_a_terminal(terminal, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.05)
    with display(), phase("saving"):
        time.sleep(0.1)
    assert re.search(r"saving: 0\.\d s", terminal())


def test_elsewhere_only_a_long_phase_is_a_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.1)
    with display():
        with phase("short"):
            pass
        with phase("fetching a==1"):
            time.sleep(0.3)
    assert capsys.readouterr() == ("", "fetching a==1 …\n")


@pytest.fixture
def outputs(monkeypatch):
    """Makes this process the kernel of a notebook; gives the contents of its outputs."""
    found = []

    def show(content, display_id):
        found.append(content)
        return types.SimpleNamespace(update=lambda content: found.__setitem__(-1, content))

    shell = types.SimpleNamespace(kernel=object())
    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, show
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(notebook, "INTERVAL", 0.0)
    return found


def test_a_notebook_shows_one_output_with_a_bar_and_a_curve(outputs, capsys):
    with display() as shown:
        assert not shown.live
        shown.say("before <training>")
        shown.start_bar("training", 20, 0)
        with phase("compiling"):
            assert "<div>compiling …</div>" in outputs[-1]
        for step, loss in ((1, 4.0), (2, 3.0), (3, math.nan), (4, 1.0)):
            shown.plot(step, "train", {"loss": loss, "tokens_per_second": 12.0, "f1/spam": 0.5})
            shown.advance(step)
            shown.say(f"step {step}")
        shown.plot(4, "validation", {"loss": 2.0})
        shown.end_bar()
        shown.show(Table("a table"))
    (found,) = outputs
    assert '<progress value="4" max="20"' in found and "4/20" in found and "compiling" not in found
    assert found.count("<polyline") == 2 and found.count("<circle") == 1  # No loss at step 3.
    assert "loss 1 · tokens per second 12<" in found and "f1" not in found
    notes, log = found.split("<details>")
    assert "before &lt;training&gt;" in notes and "a table" in notes and "step 4\n" not in notes and "step 4" in log
    assert capsys.readouterr() == ("", "")


def test_long_curves_and_logs_are_thinned(outputs, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL", 60.0)
    view = notebook.View()
    for step in range(3000):
        view.plot(step, "train", {"loss": 1.0})
        view.say(f"line {step}", logged=True)
    points = re.search(r'points="([^"]*)"', view.html())[1].split()
    assert 150 <= len(points) <= notebook.POINTS and points[0].startswith("56.0,") and points[-1].startswith("632.0,")
    x = [float(point.split(",")[0]) for point in points]
    assert max(after - before for before, after in itertools.pairwise(x)) <= 6 * (632 - 56) / notebook.POINTS
    assert "line 2999" in view.html() and "line 2599" not in view.html()
    assert notebook.chart({"train": [(1, 2.0)]}) == ""


def test_a_quiet_display_and_phases_without_one_print_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    with phase("alone") as show:
        show("1 batch")
        time.sleep(0.05)
    with display(quiet=True) as shown, phase("quiet"):
        shown.say("nothing")
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_one_display_serves_those_within_it(capsys):
    with display(stderr=True) as outer, display() as inner:
        assert inner is outer
        inner.say("result")
    assert capsys.readouterr() == ("", "result\n")


def test_a_phase_ends_with_an_error():
    with display(quiet=True) as shown:
        with pytest.raises(ValueError), phase("failing"):
            raise ValueError
        assert not shown._phases.tasks


def test_the_time_that_remains_is_known_after_some_steps():
    shown = Display(quiet=True)
    assert shown.remaining is None
    shown.start_bar("training", 1000, 0)
    for step in range(1, 6):
        time.sleep(0.01)
        shown.advance(step)
    assert 5 < shown.remaining < 500


@pytest.mark.parametrize("seconds, shown", [(4.24, "4.2 s"), (42.4, "42 s"), (60, "1:00"), (3765, "1:02:45")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_a_line_of_training_names_what_counts():
    values = {
        "loss": 2.5,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "skipped_steps": 0,
        "tokens_per_second": 12345.6,
    }
    line = train_summary(values | {UTILIZATION: 0.415}, 83)
    assert re.fullmatch(
        r"loss 2\.5000  lr 1\.00e-03  grad norm 0\.5  12,346 tokens/s  4[12]% of peak  \d+\.\d GiB  eta 1:23", line
    )


def test_the_peak_of_a_device_is_that_of_its_own_kind():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    peaks = {kind: utilization.peak_flops(Device(kind)) for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe")}
    assert list(peaks.values()) == [989e12, 756e12]
    assert utilization.peak_flops(Device("TPU v5 lite")) == 197e12 < utilization.peak_flops(Device("TPU v5p"))
    assert utilization.peak_flops(jax.devices()[0]) is None


def test_many_labels_are_summarised_by_the_worst():
    few = {"loss": 1.0, "macro_f1": 0.5} | {f"{kind}/{n}": n / 10 for n in range(4) for kind in ("f1", "recall")}
    assert headline(few) == few
    many = {"loss": 1.0, "macro_f1": 0.5} | {f"{kind}/{n}": n / 50 for n in range(50) for kind in ("f1", "recall")}
    assert headline(many) == {"loss": 1.0, "macro_f1": 0.5, "f1/0": 0.0, "f1/1": 1 / 50, "f1/2": 2 / 50}
