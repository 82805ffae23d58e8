"""The report of runs: its content, its size, and how it looks in a browser."""

import base64
import html
import importlib.util
import io
import json
import math
import re
import types

import browser
import numpy as np
import pytest
import small_whisper
import tiny
import written_runs
from PIL import Image

import jaxformer as jf
from jaxformer import cli, html_page
from jaxformer.data.fields.sound import SoundField
from jaxformer.data.fields.waveform import WaveformField
from jaxformer.data.tasks.base import Demonstration
from jaxformer.predictors.pictures import Pictures
from jaxformer.reports import examples
from jaxformer.reports.charts import thinned
from jaxformer.reports.media import Media
from jaxformer.runs.sessions import KINDS, read_sessions

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """Two runs that were not trained: one was killed and has skipped a step, and the other has another peak."""
    home = tmp_path_factory.mktemp("runs")
    one = tiny.load(tiny_config, steps=100)
    skip = {"step": 42, "gradient_norm": math.inf, "loss": 3.0, "lanes": [[0]]}
    written_runs.write_run(
        home / "one",
        one,
        written_runs.metric_lines(100),
        written_runs.session_lines((0, 60), (50, 100)),
        [skip],
    )
    two = tiny.load(tiny_config, steps=100, optimizer__schedule__peak=0.5)
    written_runs.write_run(
        home / "two" / "run <2>", two, written_runs.metric_lines(80, offset=0.5), written_runs.session_lines((0, 80))
    )
    certificate = {"architecture": "BertForMaskedLM", "parameters": 10, "dtype": "float32", "passed": True}
    line = {"what": "logits", "where": "2 × 5", "measured": 1e-6, "tolerance": 2e-5, "note": "", "passed": True}
    certificate |= {"versions": {"torch": "2.13.0"}, "lines": [line]}
    (home / "two" / "run <2>" / "parity.json").write_text(json.dumps(certificate))
    return home


@pytest.fixture(scope="module")
def pages(runs):
    """The report of one run, and that of both."""
    one, both = runs / "one.html", runs / "both.html"
    assert cli.main(["report", str(runs / "one"), "--out", str(one)]) == 0
    assert cli.main(["report", str(runs / "one"), str(runs / "two" / "run <2>"), "--out", str(both)]) == 0
    return one, both


def text_of(page):
    """The text that a reader sees, with a space for each tag."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", without)).split())


def charts(page):
    """The charts of a page: title and series."""
    found = re.findall(
        r'<figure class="chart[^"]*"><h3>(.*?)</h3>.*?<script type="application/json">(.*?)</script>',
        page.read_text(encoding="utf-8"),
    )
    return {title: json.loads(data)["series"] for title, data in found}


def test_a_page_says_what_was_trained_and_how_the_time_was_spent(pages):
    text = text_of(pages[0])
    assert "Bert · 1,234,567 parameters (1,000,000 trained)" in text
    assert "8 × TPU v5p · mesh fsdp 8 · 2 processes" in text and "3.00 GiB a process" in text
    assert "AdamW, learning rate 0.01, 5 steps of warmup, linear decay" in text
    assert "step 100 of 100 · done" in text and "10:00 in 2 sessions" in text
    assert "0 to 60" in text and "50 to 100" in text and "killed" in text and "55:00" in text
    [pause, repeated, ended] = re.search(r"50 to 100 5:00 .*? (55:00) (\d+) (\w+)", text).groups()
    assert (pause, repeated, ended) == ("55:00", "10", "done")
    assert re.search(r"Skipped steps step gradient norm loss 42 not finite 3", text)
    (time,) = [series for title, series in charts(pages[0]).items() if title.startswith("time")]
    assert [one["name"] for one in time] == [*KINDS, "other"]
    assert [one["y"][0] for one in time] == pytest.approx(
        [seconds / 30 for seconds in (10, 20, 30, 40, 50, 60, 90)], rel=1e-4
    )


def test_results_have_the_last_and_the_best_values(pages):
    text = text_of(pages[0])
    assert re.search(r"accuracy 1 0\.5000 50 1 100", text)
    assert "9 more metrics of single labels" in text


def test_charts_have_the_values_of_training_and_evaluations(pages):
    one, both = map(charts, pages)
    assert {"loss", "accuracy", "learning rate", "gradient norm", "tokens per second"} < one.keys()
    train, validation = one["loss"]
    assert (train["x"], validation["x"]) == (list(range(10, 101, 10)), [50, 100])
    assert validation["y"][1] == pytest.approx(4 * math.exp(-1) + 1.1, rel=1e-5)
    assert one["gradient norm"][0]["y"][2] is None, "a gap for a value that is not finite"
    assert [series["name"] for series in both["loss"]] == [
        *("one · train", "one · validation"),
        *("run <2> · train", "run <2> · validation"),
    ]
    assert len({series["color"] for series in both["loss"]}) == 2


def test_several_runs_are_compared_field_by_field(pages):
    text = text_of(pages[1])
    assert re.search(r"Differences between the configs field one run <2> optimizer\.schedule\.peak 0\.01 0\.5 ", text)
    assert "Certificate of run <2>" in text and "passed: PyTorch computes the same results" in text
    assert "<2>" not in pages[1].read_text(encoding="utf-8").replace("run <2>", "", 0).split("</script>")[-1]


@browser.needed
@pytest.mark.slow
def test_a_browser_shows_the_pages_offline_at_any_width(pages):
    with browser.opened() as shown:
        for page in pages:
            assert page.stat().st_size < 5_000_000
            for width, dark in ((1280, False), (390, True)):
                shown.show(page, width, dark)
                drawn = shown.value("[...document.querySelectorAll('figure.chart svg.main-svg')].length")
                assert drawn >= len(charts(page)) > 0
                assert shown.value("document.documentElement.scrollWidth") <= width
                paper = shown.value("getComputedStyle(document.body).backgroundColor")
                assert (paper == "rgb(255, 255, 255)") is not dark
        shown.value("document.getElementById('logarithmic').click()")
        axes = "[...document.querySelectorAll('figure.chart > div')].map((one) => one.layout.yaxis.type)"
        assert "log" in shown.value(axes)
        assert not shown.problems
        assert {url.partition(":")[0] for url in shown.requests} <= {"file", "data", "blob"}


def test_long_series_keep_their_outliers():
    values = [0.0] * 50_000
    values[31_234], values[7], values[20_000] = 9.0, -4.0, math.nan
    x, y = thinned(range(50_000), values, 1000)
    assert len(y) <= 1000 and x == sorted(x)
    assert {9.0, -4.0} <= set(y) and any(map(math.isnan, y))
    assert x[y.index(9.0)] == 31_234 and (x[0], x[-1]) == (0, 49_999)


def test_sounds_have_a_spectrogram_and_a_player(tmp_path):
    path = small_whisper.wav(tmp_path / "a.wav", 0.5)
    for field in (WaveformField(rate=8000), SoundField()):
        shown = Media(types.SimpleNamespace(audio=field)).shown(path)
        assert "spectrogram of a.wav" in shown and "<audio" in shown


def test_small_pictures_are_enlarged_by_a_whole_number(tmp_path):
    Image.new("L", (20, 10), 200).save(tmp_path / "a.png")
    shown = Media(types.SimpleNamespace()).shown(str(tmp_path / "a.png"))
    content = base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])
    assert Image.open(io.BytesIO(content)).size == (140, 70)


def test_an_answer_that_is_a_figure_is_in_the_frame_of_its_example():
    answer = Pictures("a <b>", np.zeros((2, 8, 8, 3), np.uint8))
    shown = examples._shown(examples.Example(Demonstration(("a <b>",), "the original"), (answer,)), Media(None))
    assert shown.startswith("<figure>") and shown.endswith("</figure>") and shown.count("<img") == 2
    assert html_page.grid([shown]).count("<figure>") == 1 and "a &lt;b&gt;" in shown and "the original" in shown


def test_wrong_input_is_one_line(runs, tiny_config, tmp_path, capsys, monkeypatch):
    def message(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert f"{tmp_path}: not a run's folder: experiment.json" in message(tmp_path)
    assert "nowhere: not a run's folder: there is no such folder" in message("nowhere")
    (tmp_path / "notes.html").write_text("mine")
    assert "exists, and is not a page of jaxformer" in message(runs / "one", "--out", tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert "a folder; expected the name of a file" in message(runs / "one", "--out", tmp_path)
    assert "cannot be written" in message(runs / "one", "--out", tmp_path / "missing" / "page.html")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name))
    assert message(runs / "one").endswith("pip install 'jaxformer[report]'")


def test_a_run_without_evaluations_has_a_report_that_says_so(tiny_config, tmp_path, capsys):
    lines = [line for line in written_runs.metric_lines(20) if line["split"] == "train"]
    run = written_runs.write_run(tmp_path / "run", tiny.load(tiny_config, steps=100), lines)
    assert cli.main(["report", str(run), "--no-examples"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(run / "report.html")
    assert said.err.splitlines() == [
        f"note: {run}: the run has no evaluations yet; it evaluates every 12 steps and at its end"
    ]
    assert "the run has no evaluations yet" in text_of(run / "report.html")
    assert "The sessions are not recorded." in text_of(run / "report.html")


@pytest.mark.slow
def test_training_writes_its_report_with_examples(tiny_config, tmp_path, capsys):
    settings = {"steps": 4, "evaluation__every": 2, "log__report": True}
    run = jf.fit(tiny.load(tiny_config, **settings), tmp_path / "run")
    page = run.folder / "report.html"
    text = text_of(page)
    assert "step 4 of 4 · done" in text and "[MASK]" in text and "in the data" in text
    assert html_page.is_page(page.read_text(encoding="utf-8")[:10_000])
    (session,) = read_sessions(run.folder / "sessions.jsonl")
    seconds = session.seconds
    assert seconds["compilation"] > 0 and seconds["evaluation"] > 0 and seconds["saving"] > 0
    assert sum(seconds.values()) == pytest.approx(session.total, abs=0.1)
    assert (session.first_step, session.last_step, session.ended) == (0, 4, "done")
    assert session.start["parameters"] == sum(array.size for array in tiny_leaves(run.params))
    page.unlink()
    capsys.readouterr()
    assert cli.main(["report", str(run.folder), "--no-examples"]) == 0
    assert "step 4 of 4 · done" in text_of(page) and "[MASK]" not in text_of(page)


def tiny_leaves(tree):
    return [leaf for part in tree.values() for leaf in (tiny_leaves(part) if isinstance(part, dict) else [part])]
