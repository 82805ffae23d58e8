"""A run's folder: resuming, refusing, beginning from another run, reading back."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny

import jaxformer as jf
from jaxformer import config, runs
from jaxformer.checkpoints import StoredArray
from jaxformer.errors import InputError
from jaxformer.sharding import Mesh


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return tiny.load(tiny_config, steps=6, evaluation__every=3, checkpoint__every=3, optimizer__ema=0.5)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    return jf.fit(experiment, tmp_path_factory.mktemp("runs") / "run", quiet=True)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run's folder to do harm to."""
    return shutil.copytree(run.folder, tmp_path / "copy")


def contents(folder):
    """Every file below a folder, with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_experiment_is_kept_whole(run, experiment):
    assert runs.read_experiment(run.folder) == experiment
    text = (run.folder / "experiment.json").read_text()
    assert config.to_json(config.from_json(text)) == text


def test_a_run_read_back_is_the_run_that_fit_returned(run):
    again = jf.open_run(run.folder)
    assert (again.step, again.experiment, again.model) == (6, run.experiment, run.experiment.model)
    assert again.tokenizer.pieces == run.tokenizer.pieces
    for ours, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert again.evaluate() == pytest.approx(run.evaluate())


def test_a_run_with_an_average_is_used_with_it(run):
    saved, mine = tiny.saved(run.folder), dict(jax.tree.leaves_with_path(jf.open_run(run.folder).params))
    for path, leaf in mine.items():
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(leaf), saved["['average']" + name])
    stored = dict(jax.tree.leaves_with_path(jf.open_run(run.folder, in_memory=False).params))
    assert stored.keys() == mine.keys() and all(isinstance(leaf, StoredArray) for leaf in stored.values())
    for path, leaf in mine.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(stored[path]))
    differing = [path for path in saved if path.startswith("['average']")]
    assert any((saved[path] != saved[path.replace("average", "params")]).any() for path in differing)


def test_predicting_one_text_gives_one_answer_and_several_a_list(run):
    [first, second] = run.predict(["The [MASK] ran.", "A dog [MASK] the [MASK]."])
    alone = run.predict("The [MASK] ran.")
    assert (alone.text, len(alone.blanks), len(second.blanks)) == ("The [MASK] ran.", 1, 2)
    assert [piece for piece, _ in alone.blanks[0]] == [piece for piece, _ in first.blanks[0]]


def test_a_run_that_has_ended_does_nothing_more(run, copy):
    before = tiny.saved(copy)
    again = jf.fit(run.experiment, copy, quiet=True)
    assert again.step == 6
    tiny.assert_equal(tiny.saved(copy), before)


def test_a_run_asked_for_fewer_steps_than_it_has_done_stays_as_it_is(run, copy):
    before = tiny.saved(copy)
    assert jf.fit(dataclasses.replace(run.experiment, steps=4), copy, quiet=True).step == 6
    tiny.assert_equal(tiny.saved(copy), before)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7},
        {"steps": 7, "mesh": Mesh(2, 2, 2)},
        {"steps": 7, "checkpoint.every": 7, "checkpoint.best": "loss", "evaluation.batches": 1, "log.every": 2},
        {"steps": 7, "data.prefetch": 1},
    ],
    ids=str,
)
def test_what_changes_no_weights_meaning_may_change(change, run, copy):
    now = config.override(run.experiment, change)
    assert jf.fit(now, copy, quiet=True).step == 7
    assert runs.read_experiment(copy) == now


@pytest.mark.parametrize(
    "change",
    [
        {"model.transformer.depth": 3},
        {"model.vocab": 129},
        {"seed": 1},
        {"data.batch": 16},
        {"data.pack": True},
        {"optimizer.ema": None},
        {"optimizer.schedule.peak": 1.0},
        {"tokenizer.vocab": 100},
        {"objective.next_sentence": 0.5},
    ],
    ids=str,
)
def test_what_would_make_it_another_experiment_is_refused_and_the_run_untouched(change, run, copy):
    before = contents(copy)
    [path] = change
    with pytest.raises(InputError, match=rf"{copy}: another experiment's run: {path}: .* in the run, .* now"):
        jf.fit(config.override(run.experiment, change), copy, quiet=True)
    assert contents(copy) == before


def test_a_folder_with_something_else_is_refused_and_untouched(experiment, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds thesis but no run"):
        jf.fit(experiment, tmp_path, quiet=True)
    assert contents(tmp_path) == before


def test_what_a_killed_start_has_left_is_cleared_away(experiment, tmp_path):
    for name in ("tokenizer", "tokenizer.tmp-123", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    (tmp_path / "experiment.json.tmp").touch()
    with runs.writer(tmp_path, experiment):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_writer_that_fails_removes_what_it_made_and_nothing_else(experiment, tmp_path):
    def fail(folder):
        with pytest.raises(ZeroDivisionError), runs.writer(folder, experiment):
            (folder / "tokenizer").mkdir()
            raise ZeroDivisionError

    (tmp_path / "there").mkdir()
    fail(tmp_path / "there")
    fail(tmp_path / "new" / "deep" / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_second_writer_is_refused_until_the_first_has_ended(experiment, tmp_path):
    with runs.writer(tmp_path / "run", experiment):
        with pytest.raises(InputError, match="another process"), runs.writer(tmp_path / "run", experiment):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    with runs.writer(tmp_path / "run", experiment):
        pass


def test_a_run_begins_from_the_parameters_of_another(run, experiment, tmp_path):
    begun = config.override(experiment, {"init": str(run.folder), "optimizer.schedule.peak": 0.0, "steps": 1})
    begun = config.override(begun, {"optimizer.schedule.warmup": 0})
    fitted = jf.fit(begun, tmp_path / "run", quiet=True)
    for ours, theirs in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert fitted.step == 1


def test_a_run_does_not_begin_from_one_with_another_model(run, experiment, tmp_path):
    other = config.override(experiment, {"init": str(run.folder), "model.transformer.depth": 3})
    with pytest.raises(InputError, match=r"init=.*another model: model.transformer.depth: 2 in the run, 3 now"):
        jf.fit(other, tmp_path / "deep" / "run", quiet=True)
    assert not (tmp_path / "deep").exists()


def test_a_run_from_a_larger_mesh_opens_on_the_devices_that_are_here(copy, run):
    larger = dataclasses.replace(run.experiment, mesh=Mesh(16, 2, 4))
    runs.write_experiment(copy, larger)
    opened = jf.open_run(copy)
    assert dict(opened.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert opened.evaluate()["loss"] == pytest.approx(run.evaluate()["loss"], rel=1e-5)


def test_the_best_checkpoint_is_kept_and_all_evaluations_are_saved(experiment, tmp_path):
    best = {"checkpoint.best": "loss", "checkpoint.keep": 1, "checkpoint.every": 5, "evaluation.every": 2}
    # A rate that makes the loss worse after the first evaluation.
    best |= {"optimizer.schedule.peak": 3.0, "optimizer.schedule.warmup": 6}
    jf.fit(config.override(experiment, best), tmp_path / "run", quiet=True)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[-1] == 6 and len(kept) == 2 and kept[0] in (2, 4)
