"""The logs of a run, and their state after a kill."""

import json
import math
import re
import subprocess
import sys

import pytest
import tiny

import jaxformer as jf
from jaxformer import digests
from jaxformer.runs.history import read_history
from jaxformer.training.logs import Logs, summary, train_summary

TRAIN = {"loss", "masked_lm_loss", "masked_lm_accuracy", "masked_lm_perplexity", "next_sentence_loss"}
TRAIN |= {"next_sentence_accuracy", "gradient_norm", "learning_rate", "skipped_steps", "tokens_per_second"}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    overrides = {"steps": 5, "log__every": 2, "evaluation__every": 4, "checkpoint__minutes": 0.0, "checkpoint__keep": 9}
    return jf.fit(tiny.load(tiny_config, **overrides), tmp_path_factory.mktemp("runs") / "run")


def scalars(folder):
    """{tag: {step: value}} of all TensorBoard files of a run."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  # The writer that made them is there.
    from tensorboardX.proto import event_pb2

    found = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):  # A record: its length in 8 bytes, 4 of check sum, the event, 4 of check sum.
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def values(loss):
    return dict.fromkeys(TRAIN, 1.0) | {"loss": loss}


@pytest.mark.slow
def test_checkpoints_are_saved_by_time_too(run):
    assert sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir()) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_every_line_has_its_step_its_split_and_all_metrics_as_numbers(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line.popitem()[0] == "digest" for line in lines)
    assert [(line["step"], line["split"]) for line in lines] == [
        (2, "train"),
        (4, "train"),
        (4, "validation"),
        (5, "train"),
        (5, "validation"),
    ]
    for line in lines:
        assert list(line)[:2] == ["step", "split"]
        assert all(isinstance(value, float) for value in list(line.values())[2:])
        assert line["loss"] == pytest.approx(line["masked_lm_loss"] + line["next_sentence_loss"], rel=1e-6)
        assert set(line) - {"step", "split"} >= (TRAIN if line["split"] == "train" else {"masked_lm_unigram_accuracy"})


@pytest.mark.slow
def test_a_line_is_the_mean_of_the_steps_since_the_last_one(run, tiny_config, tmp_path):
    each = {"steps": 5, "log__every": 1, "evaluation__every": 4}
    jf.fit(tiny.load(tiny_config, **each), tmp_path / "run")
    single = [line["next_sentence_loss"] for line in tiny.metrics(tmp_path / "run")]
    pairs = [line["next_sentence_loss"] for line in tiny.metrics(run.folder)]
    expected = [sum(single[0:2]) / 2, sum(single[2:4]) / 2, single[4]]
    assert pairs == pytest.approx(expected, rel=1e-6)


def test_tensorboard_has_the_same_numbers(run):
    board = scalars(run.folder)
    for split in ("train", "validation"):
        for line in tiny.metrics(run.folder, split):
            for name in set(line) - {"step", "split"}:
                assert board[f"{split}/{name}"][line["step"]] == pytest.approx(line[name], rel=1e-6)


def test_truncated_lines_and_lines_after_the_resumed_step_are_dropped(tmp_path):
    with Logs(tmp_path, 9, 0) as logs:
        for step in (1, 2, 3):
            logs.write(step, "train", values(float(step)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "split": "tr')
    with Logs(tmp_path, 9, 2) as logs:
        logs.write(3, "train", values(30.0))
    assert [(line["step"], line["loss"]) for line in tiny.metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_a_whole_last_line_without_its_end_is_dropped_too(tmp_path):
    lines = [digests.seal_line(json.dumps({"step": step, "split": "train"})) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with Logs(tmp_path, 9, 2):
        pass
    assert [line["step"] for line in tiny.metrics(tmp_path)] == [1]


def test_damaged_lines_are_reported_and_moved(tmp_path, capsys):
    path, plain = tmp_path / "metrics.jsonl", json.dumps({"step": 1, "split": "validation", "loss": 1.0})
    good = [digests.seal_line(json.dumps({"step": step, "split": "validation", "loss": 3.0})) for step in (1, 2)]
    changed = [digests.seal_line(plain).replace("1.0", "0.1"), digests.seal_line(plain).replace('"step"', '"stop"')]
    damaged = "\n".join(["[1]", "7", "{", plain, *changed, "", ""]).encode() + b"\xff\x00\n"
    path.write_bytes(good[0].encode() + b"\n" + damaged + good[1].encode() + b"\n")
    assert read_history(path)[1] == [f"{path}: line {number} is damaged" for number in range(2, 10)]
    with Logs(tmp_path, 9, 2) as logs:
        assert logs.history == [{"validation/loss": 3.0}] * 2
    printed = capsys.readouterr().out
    assert printed.count("is damaged; it is left out, and kept in damaged/metrics.jsonl") == 8
    assert path.read_text().splitlines() == good
    assert (tmp_path / "damaged" / "metrics.jsonl").read_bytes() == damaged


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with Logs(tmp_path, 9, 0) as logs:
        logs.write(1, "train", values(1.0))
        assert [line["step"] for line in tiny.metrics(tmp_path)] == [1]


def test_without_a_terminal_each_report_is_a_line(tmp_path, capsys):
    with Logs(tmp_path, 9, 0) as logs:
        logs.say("begin [red]")
        logs.write(3, "train", values(2.0))
        logs.write(3, "validation", {"loss": 1.5})
    first, train, validation = capsys.readouterr().out.splitlines()
    assert (first, validation) == ("begin [red]", "step 3/9  validation  loss 1.5000")
    shown = r"step 3/9  loss 2\.0000  lr 1\.00e\+00  grad norm 1  1 tokens/s  1 skipped  \d+\.\d GiB"
    assert re.fullmatch(shown, train), train


def test_a_quiet_run_prints_nothing_and_still_writes(tmp_path, capsys):
    with Logs(tmp_path, 9, 0, quiet=True) as logs:
        logs.say("begin")
        logs.write(1, "train", values(1.0))
    assert capsys.readouterr().out == ""
    assert [line["step"] for line in tiny.metrics(tmp_path)] == [1]


def test_a_unit_of_several_words_is_one_word_in_files_only():
    values = {"loss": 1.0, "learning_rate": 1e-3, "gradient_norm": 2.0, "skipped_steps": 0.0}
    values["seconds_of_audio_per_second"] = 66.4
    assert "  66 seconds of audio/s" in train_summary(values, None)


def test_a_summary_is_one_line():
    assert summary({"loss": 1.0, "accuracy": 0.25}) == "loss 1.0000  accuracy 0.2500"


@pytest.mark.slow
def test_tensorboard_is_imported_without_torch_which_can_be_imported_later():
    script = "import sys; from jaxformer.training import board; board.tensorboard(); assert 'torch' not in sys.modules"
    script += "; import torch"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_when_they_are_read(tmp_path):
    with Logs(tmp_path, 9, 0, quiet=True) as logs:
        logs.write(1, "validation", {"loss": float("nan"), "perplexity": float("inf"), "accuracy": 0.5})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line.pop("digest")
    assert line == {"step": 1, "split": "validation", "loss": None, "perplexity": None, "accuracy": 0.5}
    with Logs(tmp_path, 9, 1, quiet=True) as logs:
        assert math.isnan(logs.results["validation/loss"]) and logs.results["validation/accuracy"] == 0.5


def test_logs_keep_the_evaluations_of_this_process_and_of_those_before(tmp_path):
    with Logs(tmp_path, 9, 0, quiet=True) as logs:
        logs.write(1, "train", values(1.0))
        assert (logs.evaluated, logs.results, logs.history) == (0, None, [])
        logs.write(1, "validation", {"loss": 3.0})
        logs.write(2, "validation", {"loss": 2.0})
        assert (logs.evaluated, logs.results) == (2, {"validation/loss": 2.0})
        assert logs.history == [{"validation/loss": 3.0}, {"validation/loss": 2.0}]
    with Logs(tmp_path, 9, 1, quiet=True) as logs:
        assert (logs.evaluated, logs.results, logs.history) == (1, {"validation/loss": 3.0}, [{"validation/loss": 3.0}])
