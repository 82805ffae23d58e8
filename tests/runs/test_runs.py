"""A run's folder: resuming, refusing, beginning from another run, reading back."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from trees import tree

import jaxformer as jf
from jaxformer import config, digests
from jaxformer.errors import InputError
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs import writing
from jaxformer.training.checkpoint_arrays import StoredArray
from jaxformer.training.forking import rate_change
from jaxformer.training.optimizers import Lion


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


@pytest.mark.slow
def test_the_experiment_is_kept_whole(run, experiment):
    assert writing.read_experiment(run.folder) == experiment
    text = digests.unseal((run.folder / "experiment.json").read_text())
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


@pytest.mark.slow
def test_predicting_one_text_gives_one_answer_and_several_a_list(run):
    [first, second] = run.predict(["The [MASK] ran.", "A dog [MASK] the [MASK]."])
    alone = run.predict("The [MASK] ran.")
    assert (alone.text, len(alone.blanks), len(second.blanks)) == ("The [MASK] ran.", 1, 2)
    assert [piece for piece, _ in alone.blanks[0]] == [piece for piece, _ in first.blanks[0]]


@pytest.mark.parametrize("name", ["predict", "encode", "embed"])
def test_half_a_character_is_refused_with_its_place(run, name):
    """As the command line has bytes that are not UTF-8."""
    with pytest.raises(InputError, match=r"text 2 contains \\udc80 at character 1, half of a surrogate pair"):
        getattr(run, name)(["the sea", "a\udc80b"])


@pytest.mark.slow
def test_a_run_that_has_ended_does_nothing_more(run, copy):
    before = tiny.saved(copy)
    again = jf.fit(run.experiment, copy, quiet=True)
    assert again.step == 6
    tiny.assert_equal(tiny.saved(copy), before)


def test_a_run_without_its_tokenizer_is_refused_rather_than_given_another(run, copy):
    shutil.rmtree(copy / "tokenizer")
    before = contents(copy)
    with pytest.raises(InputError, match=rf"--workdir {copy}: the run's tokenizer/ is missing"):
        jf.fit(dataclasses.replace(run.experiment, steps=7), copy, quiet=True)
    assert contents(copy) == before


@pytest.mark.slow
def test_a_run_asked_for_fewer_steps_than_it_has_done_says_so_and_stays_as_it_is(run, copy, capsys):
    before, kept = tiny.saved(copy), tree(copy)
    shorter = dataclasses.replace(run.experiment, steps=4)
    assert jf.fit(shorter, copy, quiet=True).step == 6
    assert capsys.readouterr().out == ""
    again = jf.fit(shorter, copy)
    assert (again.step, again.experiment) == (6, run.experiment)
    assert capsys.readouterr().out == (
        f"--steps 4: the run in {copy} has done 6 already; nothing is trained or changed; set more than 6 to continue\n"
    )
    tiny.assert_equal(tiny.saved(copy), before)
    assert tree(copy) == kept


@pytest.mark.slow
def test_more_steps_say_what_becomes_of_the_learning_rate(run, copy, capsys):
    now = dataclasses.replace(run.experiment, steps=7)
    assert jf.fit(now, copy).step == 7
    assert writing.read_experiment(copy) == now
    line = "steps: 6 before, 7 now: the learning rate changes from 0 to 0.005; the linear schedule continues from there"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("decay, rates", [("cosine", "0 to 0.00854"), ("constant", None), ("inverse_sqrt", None)])
def test_a_schedule_that_does_not_depend_on_the_steps_says_nothing(decay, rates, experiment):
    before = config.override(experiment, {"optimizer.schedule.decay": decay})
    [*lines] = rate_change(before, dataclasses.replace(before, steps=9), SimpleNamespace(step=6, skipped=0))
    assert len(lines) == bool(rates) and all(f"the learning rate changes from {rates}; " in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7, "mesh": Mesh(2, 2, 2)},
        {"steps": 7, "checkpoint.every": 7, "checkpoint.best": "loss", "evaluation.batches": 1, "log.every": 2}
        | {"data.prefetch": 1},
    ],
    ids=str,
)
def test_what_changes_no_weights_meaning_may_change(change, run, copy):
    now = config.override(run.experiment, change)
    assert jf.fit(now, copy, quiet=True).step == 7
    assert writing.read_experiment(copy) == now


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


def test_a_second_writer_is_refused_until_the_first_has_ended(experiment, tmp_path):
    with writing.writer(tmp_path / "run", experiment):
        with pytest.raises(InputError, match="another process"), writing.writer(tmp_path / "run", experiment):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    with writing.writer(tmp_path / "run", experiment):
        pass


@pytest.mark.slow
def test_a_run_begins_from_the_parameters_of_another(run, experiment, tmp_path):
    begun = config.override(experiment, {"init": str(run.folder), "optimizer.schedule.peak": 0.0, "steps": 1})
    begun = config.override(begun, {"optimizer.schedule.warmup": 0})
    fitted = jf.fit(begun, tmp_path / "run", quiet=True)
    for ours, theirs in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert fitted.step == 1


@pytest.mark.slow
def test_a_run_does_not_begin_from_one_with_another_model(run, experiment, tmp_path):
    other = config.override(experiment, {"init": str(run.folder), "model.transformer.depth": 3})
    with pytest.raises(InputError, match=r"init=.*another model: model.transformer.depth: 2 in the run, 3 now"):
        jf.fit(other, tmp_path / "deep" / "run", quiet=True)
    assert not (tmp_path / "deep").exists()


def test_a_run_from_a_larger_mesh_opens_on_the_devices_that_are_here(copy, run):
    larger = dataclasses.replace(run.experiment, mesh=Mesh(16, 2, 4))
    writing.write_experiment(copy, larger)
    opened = jf.open_run(copy)
    assert {axis: size for axis, size in opened.mesh.shape.items() if size > 1} == {"data": 8}
    assert opened.evaluate()["loss"] == pytest.approx(run.evaluate()["loss"], rel=1e-5)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_all_evaluations_are_saved(experiment, tmp_path):
    best = {"checkpoint.best": "loss", "checkpoint.keep": 1, "checkpoint.every": 5, "evaluation.every": 2}
    # A rate that makes the loss worse after the first evaluation.
    best |= {"optimizer.schedule.peak": 3.0, "optimizer.schedule.warmup": 6}
    jf.fit(config.override(experiment, best), tmp_path / "run", quiet=True)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[-1] == 6 and len(kept) == 2 and kept[0] in (2, 4)


def damage(folder, step, tree="average"):
    """Cuts the files in two in which a tree of a checkpoint says where its arrays are."""
    for file in (folder / "checkpoints" / str(step) / tree / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
def test_a_damaged_latest_checkpoint_is_named_and_the_newest_good_one_trained_on(run, copy, capsys):
    damage(copy, 6, "training")
    assert jf.open_run(copy).step == 6, "what is not read does no harm"
    damage(copy, 6)
    with pytest.warns(UserWarning) as caught:
        opened = jf.open_run(copy)
    [line] = [str(warning.message) for warning in caught]
    assert opened.step == 3 and line.startswith(f"{copy / 'checkpoints' / '6'}: damaged: ") and "\n" not in line
    assert line.endswith("; using step 3")
    jf.fit(run.experiment, copy)
    out = capsys.readouterr().out
    assert f"{copy / 'checkpoints' / '6'}: damaged: " in out and "resuming from step 3" in out
    assert (copy / "damaged" / "6").is_dir(), "it is kept"
    tiny.assert_equal(tiny.saved(copy), tiny.saved(run.folder))
    for split in ("train", "validation"):
        steps = [[line["step"] for line in tiny.metrics(folder, split)] for folder in (copy, run.folder)]
        assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_in_a_line_and_kept(run, copy):
    for step in (3, 6):
        damage(copy, step)
    before = contents(copy)
    for call in (jf.open_run, lambda folder: jf.fit(run.experiment, folder, quiet=True)):
        with pytest.raises(InputError, match=r"checkpoints/6: damaged: .*; .*checkpoints/3: damaged: "):
            call(copy)
    assert contents(copy) == before


@pytest.mark.slow
def test_a_checkpoint_is_chosen_by_its_step(run, copy):
    assert jf.open_run(copy, step=3).step == 3
    with pytest.raises(InputError, match=rf"{copy}: no checkpoint of step 4; there are 3, 6"):
        jf.open_run(copy, step=4)
    damage(copy, 6)
    with pytest.raises(InputError, match=r"checkpoints/6: damaged"):
        jf.open_run(copy, step=6)


def test_a_step_without_a_checkpoint_is_refused_with_the_only_one_there_is(copy):
    shutil.rmtree(copy / "checkpoints" / "3")
    with pytest.raises(InputError, match=r"no checkpoint of step 4; there is only 6$"):
        jf.open_run(copy, step=4)


def test_a_missing_folder_and_one_that_is_not_a_run_have_different_errors(tmp_path):
    with pytest.raises(InputError, match=r"missing: not a run's folder: there is no such folder$"):
        jf.open_run(tmp_path / "missing")
    with pytest.raises(InputError, match=r"not a run's folder: experiment.json: No such file or directory$"):
        jf.open_run(tmp_path)


@pytest.mark.slow
def test_the_next_best_checkpoint_is_used_where_the_best_is_damaged(run, copy):
    losses = {line["step"]: line["loss"] for line in tiny.metrics(copy, "validation")}
    best = min(losses, key=losses.get)
    other = config.override(run.experiment, {"checkpoint.best": "loss"})
    writing.write_experiment(copy, other)
    assert jf.open_run(copy).step == best
    damage(copy, best)
    with pytest.warns(UserWarning, match=f"using step {9 - best}"):
        assert jf.open_run(copy).step == 9 - best


class TestFork:
    """A run that begins from another one's state."""

    @pytest.mark.slow
    def test_with_the_same_settings_it_ends_as_the_run_would_have(self, run, experiment, tmp_path):
        forked = config.override(experiment, {"fork": str(run.folder), "fork_step": 3})
        assert jf.fit(forked, tmp_path / "run", quiet=True).step == 6
        tiny.assert_equal(tiny.saved(tmp_path / "run"), tiny.saved(run.folder))
        assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [4, 5, 6]
        assert jf.fit(forked, tmp_path / "run", quiet=True).step == 6  # The same command again resumes.

    @pytest.mark.slow
    def test_settings_may_change_and_the_log_says_which(self, run, experiment, tmp_path, capsys):
        before = tree(run.folder)
        changes = {"optimizer.schedule.peak": 0.001, "optimizer.clip": None, "optimizer.ema": None, "steps": 8}
        first = config.override(experiment, changes | {"fork": str(run.folder)})
        jf.fit(first, tmp_path / "first")
        lines = capsys.readouterr().out.splitlines()
        assert f"continues from step 6 of {run.folder}" in lines
        assert "optimizer.schedule.peak: 0.01 in the run, 0.001 now" in lines
        assert "optimizer.clip: 1.0 in the run, None now" in lines
        assert any(
            line.startswith("steps: 6 before, 8 now: the learning rate changes from 0 to 0.00") for line in lines
        )
        assert not any("beginning" in line for line in lines)
        assert sorted(int(path.name) for path in (tmp_path / "first" / "checkpoints").iterdir()) == [6, 8]
        assert tree(run.folder) == before

        changes = {"optimizer.schedule.peak": 0.0, "optimizer.ema": 0.5, "data.batch": 16, "steps": 9}
        jf.fit(config.override(first, changes | {"fork": str(tmp_path / "first")}), tmp_path / "second")
        assert "the data starts from its beginning: data.batch: 8 in the run, 16 now" in capsys.readouterr().out
        saved, parents = tiny.saved(tmp_path / "second"), tiny.saved(tmp_path / "first")
        averages = [path for path in saved if path.startswith("['average']")]
        assert averages, "an average starts from the parameters"
        for path in averages:
            np.testing.assert_allclose(saved[path], parents[path.replace("average", "params")], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        "change, said",
        [
            ({"steps": 6}, "steps=6: fork=.* is at step 6 already"),
            ({"fork_step": 4}, "no checkpoint of step 4; there are 3, 6"),
            ({"model.transformer.norm_position": "before"}, "model.transformer.norm_position: 'after' in the run"),
            ({"model.transformer.depth": 3}, "model.transformer.depth: 2 in the run, 3 now"),
            ({"tokenizer.vocab": 100}, "tokenizer.vocab: 120 in the run, 100 now; a fork keeps"),
            ({"optimizer": Lion()}, "belongs to another model or optimizer; init=.* would take only its parameters"),
            ({"fork": "/nowhere"}, "/nowhere: not a run's folder"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_refused_in_a_line_and_leaves_nothing(self, change, said, run, experiment, tmp_path):
        forked = config.override(experiment, {"fork": str(run.folder), "steps": 8} | change)
        with pytest.raises(InputError, match=said) as caught:
            jf.fit(forked, tmp_path / "deep" / "run", quiet=True)
        assert "\n" not in str(caught.value) and not (tmp_path / "deep").exists()

    @pytest.mark.parametrize(
        "change, said",
        [
            ({"fork": "a", "init": "b"}, "init=b: fork=a sets the parameters too"),
            ({"fork_step": 3}, "fork_step=3: needs a run"),
        ],
        ids=str,
    )
    def test_fields_that_do_not_go_together_are_refused(self, change, said, experiment):
        with pytest.raises(InputError, match=said):
            config.override(experiment, change)


@pytest.mark.slow
def test_a_model_may_take_the_size_of_the_tokenizers_vocabulary(tiny_config, tmp_path):
    changes = {"model.vocab": "None", "steps": "1", "data.validation": "None", "checkpoint.every": "1"}
    experiment = config.load(tiny_config, changes)
    with pytest.raises(InputError, match=r"model\.vocab=None"):
        jax.eval_shape(experiment.model.init, jax.random.key(0), jax.numpy.zeros((1, 4), int))
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    size = run.tokenizer.vocab_size
    assert size < 128 and run.model.vocab == size
    assert jf.open_run(tmp_path / "run").experiment == run.experiment
    assert run.params["embeddings"]["token"].shape[0] == size
    assert jf.fit(experiment, tmp_path / "run", quiet=True).step == 1  # The same experiment, not another one.
    other = dataclasses.replace(experiment, seed=experiment.seed + 1)
    with pytest.raises(InputError, match="another experiment's run: seed"):
        jf.fit(other, tmp_path / "run", quiet=True)
