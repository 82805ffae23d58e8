"""Who may write to a folder, what a start that fails or is killed leaves, and a folder that moves away."""

import json
import os
import shutil

import pytest
import tiny
from trees import tree

import jaxformer as jf
from jaxformer import cli, config
from jaxformer.errors import InputError
from jaxformer.runs import folder as run_folder
from jaxformer.runs import writing
from jaxformer.runs.folder import STARTING, Claim, claim


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return tiny.load(tiny_config, steps=2)


def write(path, content="mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def project(folder):
    """A project that happens to have the names of what a run is made of."""
    for name in ("tokenizer.py", "tokenizer/vocab.txt", "tokenizers/my.json", "checkpoints/7/params", "checkpoints.py"):
        write(folder / name)
    write(folder / "experiment.json.tmp")
    write(folder / "metrics.jsonl", json.dumps({"step": 1, "split": "train"}))
    (folder / "checkpoints-link").symlink_to(folder / "checkpoints")


def hugging_face(folder):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        write(folder / name)
    write(folder / "tokenizer" / "tokenizer.json")
    write(folder / "checkpoints" / "checkpoint-500" / "pytorch_model.bin")


def locked(folder):
    """A folder with another process's lock, and with links under names that runs use."""
    write(folder / ".lock", "17")
    (folder / "elsewhere" / STARTING).mkdir(parents=True)
    (folder / STARTING).symlink_to(folder / "elsewhere" / STARTING)
    write(folder / "tokenizer" / "vocab.txt")


@pytest.mark.parametrize("make", [project, hugging_face, locked])
def test_a_folder_with_something_else_is_refused_and_nothing_in_it_changes(make, tiny_config, experiment, tmp_path):
    make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"holds \S+ \(and \d+ more\) but no run"):
        jf.fit(experiment, tmp_path, quiet=True)
    assert cli.main(["train", str(tiny_config), "--workdir", str(tmp_path)]) == 2
    assert tree(tmp_path) == before


@pytest.mark.parametrize("lock", [True, False])
def test_a_refused_start_in_a_run_changes_nothing_in_it(lock, experiment, tmp_path):
    with writing.writer(tmp_path / "run", experiment) as claimed:
        claimed.start(config.to_json(experiment))
    if not lock:
        (tmp_path / "run" / ".lock").unlink()  # A run that was copied or imported has none.
    before = tree(tmp_path)
    other = config.override(experiment, {"seed": 5})
    with pytest.raises(InputError, match="another experiment"):
        jf.fit(other, tmp_path / "run", quiet=True)
    with pytest.raises(ZeroDivisionError), writing.writer(tmp_path / "run", experiment):
        raise ZeroDivisionError
    after = tree(tmp_path)
    after["run"] = before["run"]  # A lock that was made and removed leaves its time in the folder.
    assert after == before


def killed(folder, **made):
    """Leftovers of a process that was killed before its folder was a run's."""
    (folder / STARTING).mkdir(parents=True)
    write(folder / ".lock", "")
    for name, content in made.items():
        write(folder / STARTING / name / "part", content)


def test_what_a_killed_start_has_left_is_cleared_away(experiment, tmp_path):
    killed(tmp_path, **{"tokenizer": "a", "tokenizer.tmp-123": "b"})
    (tmp_path / "checkpoints").mkdir()
    with writing.writer(tmp_path, experiment):
        assert sorted(path.name for path in tmp_path.iterdir()) == [STARTING, ".lock"]
        assert not any((tmp_path / STARTING).iterdir())


def test_a_start_killed_between_its_tokenizer_and_its_experiment_is_cleared_away(experiment, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    killed(tmp_path, tokenizer="a")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        Claim(tmp_path)._write("{}")
    assert (tmp_path / "tokenizer" / "part").exists() and not (tmp_path / "experiment.json").exists()
    with writing.writer(tmp_path, experiment):
        assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("name", ["tokenizer/vocab.txt", "checkpoints/3/params", "thesis.tex"])
def test_what_somebody_has_put_beside_a_killed_start_is_refused_and_kept(name, experiment, tmp_path):
    killed(tmp_path, tokenizer="a")
    write(tmp_path / name)
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match=f"holds {name.split('/')[0]} but no run"),
        writing.writer(tmp_path, experiment),
    ):
        pass
    assert tree(tmp_path) == before


def test_a_failed_start_removes_what_it_made_and_nothing_that_came_meanwhile(experiment, tmp_path):
    with pytest.raises(ZeroDivisionError), writing.writer(tmp_path / "new" / "run", experiment) as claimed:
        write(claimed.tokenizer / "vocab.txt")
        (tmp_path / "new" / "run" / "checkpoints").mkdir()
        write(tmp_path / "new" / "run" / "tokenizer" / "mine.txt")
        write(tmp_path / "new" / "other" / "mine.txt")
        raise ZeroDivisionError
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["new/other/mine.txt", "new/run/tokenizer/mine.txt"]
    assert not (tmp_path / "new" / "run" / "checkpoints").exists()


def test_a_link_to_a_folder_is_that_folder_and_one_to_nothing_is_refused(experiment, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    with writing.writer(tmp_path / "run", experiment) as claimed:
        assert (tmp_path / "disk" / STARTING).is_dir() and not claimed.moved()
    assert not any((tmp_path / "disk").iterdir())
    with pytest.raises(InputError, match="a link to nothing"), writing.writer(tmp_path / "broken", experiment):
        pass


def test_locks_that_fail_and_locks_of_another_process_have_different_errors(experiment, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", fail)
    with pytest.raises(InputError, match="cannot be locked: No locks available"), writing.writer(tmp_path, experiment):
        pass
    assert not any(tmp_path.iterdir())


CHANGES = {
    "renamed": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "removed": shutil.rmtree,
    "replaced": lambda folder: (folder.rename(folder.with_name("elsewhere")), write(folder / ".lock", "")),
    "without its lock": lambda folder: (folder / ".lock").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_is_another_one_is_noticed_and_nothing_is_removed(change, experiment, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError) as caught, writing.writer(folder, experiment) as claimed:
        claimed.check()
        write(claimed.tokenizer / "vocab.txt")
        change(folder)
        before = tree(tmp_path)
        claimed.check()
    assert str(caught.value).startswith(f"--workdir {folder}: ") and "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    if (tmp_path / "elsewhere").exists():
        assert f"moved to {tmp_path / 'elsewhere'}" in str(caught.value)


def test_what_is_saved_follows_a_folder_that_is_renamed(experiment, tmp_path):
    with claim(tmp_path / "run", lambda: None) as claimed:
        claimed.start("{}")
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        write(claimed.home / "checkpoints" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "checkpoints" / "file").exists()


def test_an_experiment_that_is_the_same_is_not_written_again(experiment, tmp_path):
    text = config.to_json(experiment)
    with writing.writer(tmp_path, experiment) as claimed:
        claimed.start(text)
    before = tree(tmp_path)
    with writing.writer(tmp_path, experiment) as claimed:
        claimed.start(text)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "sessions.jsonl", "checkpoints", "experiment.json.tmp", ".lock"])
def test_links_in_a_run_are_never_written_through(name, experiment, tmp_path):
    (tmp_path / "run").mkdir()
    writing.write_experiment(tmp_path / "run", experiment)
    elsewhere = write(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=f"{name} is a link to {elsewhere}, and a run writes only to its own folder"):
        jf.fit(experiment, tmp_path / "run", quiet=True)
    assert elsewhere.read_text() == "mine"
