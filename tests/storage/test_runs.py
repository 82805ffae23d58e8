"""Runs in buckets, by real processes: killed, resumed, refused to a second writer; and the commands of the page."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from jaxformer import cli, storage
from jaxformer.runs import lease
from jaxformer.runs.history import METRICS, read_history

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
SHORT = 20.0
"""Seconds that a lease lasts here; a machine with much else to do must be able to renew it."""
TRAIN = f"""
import sys
from jaxformer import cli
from jaxformer.runs import lease
lease.SECONDS = {SHORT}
{{hook}}
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""
HOOK = """
import time
from jaxformer.training.logs import Meter
add, steps = Meter.add, iter([0] * 6 + [600])
Meter.add = lambda meter, means: time.sleep(next(steps)) or add(meter, means)
"""
"""Waits after six steps, while the lease is renewed."""
FEW = ("--steps", "10", "--evaluation.every", "10", "--evaluation.batches", "1", "--checkpoint.every", "4")


def start(*arguments, hook=""):
    """A process that trains on one device, with short leases, after it has run the lines of a hook."""
    command = [sys.executable, "-c", TRAIN.format(hook=hook), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | tiny.flags(), text=True, cwd=tiny.ROOT, **pipes)


def train_losses(folder):
    """The steps and the losses of the training lines."""
    lines, _ = read_history(storage.path(folder) / METRICS)
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory):
    """The losses of a local run from start to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    tiny.finish(start(tiny_config, *FEW, "--workdir", folder))
    return train_losses(folder)


@pytest.mark.slow
def test_a_killed_run_is_refused_while_it_lives_and_resumes_as_if_undisturbed(
    bucket, tiny_config, undisturbed, monkeypatch, capsys
):
    run = bucket.path("runs/a")
    monkeypatch.setattr(lease, "SECONDS", SHORT)
    first = start(tiny_config, *FEW, "--workdir", run, hook=HOOK)
    tiny.wait_for(lambda: any("/checkpoints/4/commit_success.txt" in url for url in requests(bucket)), first)
    assert cli.main(["train", str(tiny_config), *FEW, "--workdir", run]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "another process is writing this run" in line and f"process {first.pid} on" in line
    first.kill()
    first.communicate()
    tiny.finish(start(tiny_config, *FEW, "--workdir", run))
    assert train_losses(run) == undisturbed
    names = {key.split("/")[2] for key in bucket.listed()}
    assert names == {
        ".lease",
        "checkpoints",
        "data.json",
        "experiment.json",
        "metrics.jsonl",
        "sessions.jsonl",
        "tensorboard",
        "tokenizer",
    }


def requests(bucket):
    return [url.replace("%2F", "/") for _, url in list(bucket.faults.requests)]


@pytest.mark.slow
def test_the_commands_of_the_page(bucket, tiny_config, tmp_path, monkeypatch, capsys):
    if bucket.scheme == "s3":
        pytest.skip("the page shows gs://")
    monkeypatch.chdir(tmp_path)
    commands = re.search(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    lines = [line.split("  #")[0].strip().replace("BUCKET", "bucket") for line in commands.splitlines()]
    assert len(lines) == 6
    for line in lines:
        _, *words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        words = [str(tiny_config) if word == "CONFIG.py" else word for word in words]
        assert cli.main([*words, *(FEW if words[0] == "train" else ())]) == 0, (line, capsys.readouterr().err)
    assert json.loads(storage.read_bytes("gs://bucket/answers/a.json"))
    objects = bucket.listed()
    assert {"hf/a/config.json", "hf/a/model.safetensors", "runs/imported/experiment.json"} <= objects.keys()
    assert "parameters are those of gs://bucket/runs/a" in capsys.readouterr().out
