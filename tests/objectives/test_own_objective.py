"""An objective with its own metric and predictor trains, evaluates, predicts and resumes without a change elsewhere."""

import json

import jax
import numpy as np
import pytest
import tiny
from own_objective import Hinge
from small_classifier import review_experiment, write_reviews

import jaxformer as jf
from jaxformer import classes, cli
from jaxformer.config import override
from jaxformer.data.sources.sources import JsonLines
from jaxformer.evaluations import NamedEvaluation


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder)
    first = NamedEvaluation("train-set", JsonLines((str(folder / "train.jsonl"),)), batches=2)
    checkpoint = jf.Checkpoint(every=2, best="train-set/worst_margin")
    return review_experiment(folder, steps=6, objective=Hinge(), evaluations=(first,), checkpoint=checkpoint)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    return jf.fit(experiment, tmp_path_factory.mktemp("own") / "run", quiet=True)


@pytest.mark.slow
def test_it_trains_and_reports_its_own_metric_in_each_evaluation(run):
    assert {line["split"] for line in run.history} == {"train", "validation", "train-set"}
    assert "worst_margin" not in tiny.metrics(run.folder)[0], "a training step has no margins"
    for split in ("validation", "train-set"):
        lines = tiny.metrics(run.folder, split)
        assert [line["step"] for line in lines] == [2, 4, 6]
        assert all({"loss", "accuracy", "worst_margin"} <= line.keys() for line in lines)
    assert run.evaluate("train-set")["worst_margin"] != run.evaluate()["worst_margin"]


def test_the_best_checkpoint_is_that_with_the_highest_value_of_its_metric(run):
    lines = tiny.metrics(run.folder, "train-set")
    best = lines[int(np.argmax([line["worst_margin"] for line in lines]))]
    assert run.step == best["step"]
    assert run.evaluate("train-set")["worst_margin"] == best["worst_margin"]


@pytest.mark.slow
def test_its_predictor_answers_and_its_answers_save_themselves(run, tmp_path, capsys, monkeypatch):
    answers = run.predict(["a great film", "a dull <plot>"])
    logits = run.embed(["a great film", "a dull <plot>"])
    assert [answer.label for answer in answers] == [run.model.labels[best] for best in logits.argmax(-1)]
    assert answers[1]._repr_html_() == f"<pre>a dull &lt;plot&gt;: {answers[1].label}</pre>"
    monkeypatch.setattr(classes, "_allowed", {"own_objective"})
    command = ["predict", str(run.folder), "--out", str(tmp_path / "answers.json")]
    assert cli.main([*command, "a great film"]) == 0 and capsys.readouterr().out == ""
    assert json.loads((tmp_path / "answers.json").read_text()) == answers[0].to_json()
    assert cli.main([*command, "a great film", "a dull <plot>"]) == 0
    assert json.loads((tmp_path / "answers.json").read_text()) == [answer.to_json() for answer in answers]
    assert cli.main([*command[:3], str(tmp_path / "no" / "a.json"), "a film"]) == 2
    assert "--out" in capsys.readouterr().err
    (tmp_path / "answers.json").unlink()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert cli.main([*command, "a great film"]) == 0
    assert not (tmp_path / "answers.json").exists(), "only process 0 writes"


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda run: run.with_decoding(temperature=0.5), "temperature: Hinge does not generate text"),
        (lambda run: run.predict("a film", num_samples=2), "num_samples=2: Hinge does not generate text"),
        (lambda run: run.log_likelihoods(["a"], ["film"]), "Hinge does not generate text"),
    ],
)
def test_capabilities_that_its_predictor_lacks_are_refused(run, use, message):
    with pytest.raises(jf.InputError, match=message):
        use(run)
    assert list(run.stream("a film")) == [str(run.predict("a film"))]


@pytest.mark.slow
def test_it_resumes_to_the_same_end(experiment, run, tmp_path):
    jf.fit(override(experiment, {"steps": 4}), tmp_path / "run", quiet=True)
    jf.fit(experiment, tmp_path / "run", quiet=True)
    for split in ("validation", "train-set"):
        assert tiny.metrics(tmp_path / "run", split) == tiny.metrics(run.folder, split)


def test_its_run_is_read_back_by_name(run, monkeypatch):
    monkeypatch.setattr(classes, "_allowed", {"own_objective"})
    assert jf.open_run(run.folder).objective == Hinge()
