"""Experiment trackers get the metrics of a run. They store files in its folder, and contact no server."""

import importlib.util
import math

import pytest
import tiny

import jaxformer as jf
from jaxformer.errors import InputError
from jaxformer.training.trackers import check_installed, open_trackers

CONFIG = {"steps": 4, "model": "Bert", "init": None, "data.train.paths": ["a.txt"]}
LINES = [(1, {"train/loss": 3.0, "train/gradient_norm": math.nan}), (2, {"train/loss": 2.0})]


def track(name, folder):
    """Logs two steps of a run, in two sessions."""
    folder.mkdir(exist_ok=True)
    for step, values in LINES:
        (tracker,) = open_trackers([name], folder, folder, CONFIG)
        tracker.log(step, values)
        tracker.close()


@pytest.mark.slow
def test_weights_and_biases_is_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install 'jaxformer[wandb]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    track("wandb", tmp_path / "run")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    assert files and b"train/loss" in content and b"data.train.paths" in content
    assert len({file.stem for file in files}) == 1, "a resumed run has the same identifier"


@pytest.mark.slow
def test_mlflow_stores_files_and_continues_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install 'jaxformer[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("jaxformer")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["model"] == "Bert" and run.data.params["data.train.paths"] == "['a.txt']"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 3.0), (2, 2.0)]
    assert "train/gradient_norm" not in run.data.metrics


def test_a_tracker_that_is_not_installed_is_refused_before_training(tiny_config, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(InputError, match=r"log\.trackers=wandb: needs wandb, .*pip install 'jaxformer\[wandb\]'"):
        check_installed(["wandb"])
    with pytest.raises(InputError, match=r"needs wandb"):
        jf.fit(tiny.load(tiny_config, log__trackers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tiny_config):
    with pytest.raises(InputError, match=r"log\.trackers"):
        tiny.load(tiny_config, log__trackers=("comet",))
