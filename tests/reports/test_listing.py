"""`jaxformer runs`: finds, sorts and compares the runs in a folder."""

import json

import pytest
import tiny
import written_runs

from jaxformer import cli


@pytest.fixture(scope="module")
def home(tiny_config, tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    for name, began, offset, peak in (("a", 2e9, 0.5, 0.5), ("deep/er/b", 1e9, 0.0, 0.25)):
        written_runs.write_run(
            home / name,
            tiny.load(tiny_config, steps=100, optimizer__schedule__peak=peak),
            written_runs.metric_lines(100, offset=offset),
            written_runs.session_lines((0, 100), began=began),
        )
    written_runs.write_run(home / "new", tiny.load(tiny_config, steps=100, optimizer__schedule__peak=0.5))
    return home


def names(capsys, *arguments):
    """The names of the runs in the order in which they are listed."""
    assert cli.main(["runs", *map(str, arguments), "--json"]) == 0
    return [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()]


def test_runs_are_sorted_by_any_column(home, capsys):
    assert names(capsys, home) == ["deep/er/b", "a", "new"]
    assert names(capsys, home, "--sort", "run") == ["a", "deep/er/b", "new"]
    assert names(capsys, home, "--sort", "loss") == ["deep/er/b", "a", "new"]
    assert names(capsys, home, "--sort", "train/loss", "--reverse") == ["a", "deep/er/b", "new"]


def test_the_table_has_progress_and_results(home, capsys):
    assert cli.main(["runs", str(home), "--metric", "validation/accuracy", "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "started", "status", "step", "model", "parameters", "time", "accuracy"]
    assert lines[1].split()[0] == "deep/er/b" and lines[1].split()[-2:] == ["5:00", "1"]
    assert "100/100" in lines[1] and "1,234,567" in lines[1] and "2001-09-09 01:46 UTC" in lines[1]
    assert lines[3].split()[0] == "new" and "not trained here" in lines[3]
    assert any(line.split() == ["optimizer.schedule.peak", "0.25", "0.5", "0.5"] for line in lines)


def test_a_damaged_run_is_left_out_with_a_note(home, tmp_path, capsys, tiny_config):
    good = written_runs.write_run(tmp_path / "good", tiny.load(tiny_config, steps=100))
    written_runs.write_run(tmp_path / "bad", tiny.load(tiny_config, steps=100))
    path = tmp_path / "bad" / "experiment.json"
    path.write_text(path.read_text().replace('"steps": 100', '"steps": 900'))
    assert cli.main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert good.name in said.out and said.err.startswith(f"note: left out: {path}: damaged:")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such folder; expected one that contains runs"),
        (["{empty}"], "contains no runs, which are folders with an experiment.json"),
        (["{home}", "--metric", "acuracy"], "--metric acuracy: no run has it; perhaps accuracy"),
        (["{home}", "--sort", "size"], "--sort size: no such column; expected a metric, or one of run, started, "),
    ],
)
def test_wrong_input_is_one_line(home, tmp_path, capsys, arguments, message):
    filled = [argument.format(home=home, empty=tmp_path) for argument in arguments]
    assert cli.main(["runs", *filled]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
