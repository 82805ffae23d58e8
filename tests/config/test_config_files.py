"""Config files by path and by name, and the one that `jaxformer new` writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import jaxformer as jf
from jaxformer import cli
from jaxformer.config_files import locate, named

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_config_of_the_repository_has_a_name():
    assert named() == {path.stem: path for path in (ROOT / "configs").glob("*.py")}


def test_a_name_is_the_config_of_that_name():
    assert jf.load("bert_quickstart", steps=3) == jf.load(ROOT / "configs" / "bert_quickstart.py", steps=3)


def test_a_path_wins_over_a_name(empty_folder):
    assert locate("bert_quickstart") == ROOT / "configs" / "bert_quickstart.py"
    (empty_folder / "bert_quickstart").mkdir()  # Such as the folder of a run.
    assert locate("bert_quickstart") == ROOT / "configs" / "bert_quickstart.py"
    (empty_folder / "bert_quickstart").rmdir()
    (empty_folder / "bert_quickstart").write_text("")
    assert locate("bert_quickstart") == Path("bert_quickstart")


def test_a_file_is_not_taken_for_a_name():
    for path in ("bert_quickstart.py", "configs/bert_quickstart", Path("/tmp/bert_quickstart")):
        assert locate(path) == Path(path)


@pytest.mark.parametrize(
    "name, perhaps",
    [("bert_quikstart", "bert_quickstart"), ("gpt-quickstart", "gpt_quickstart"), ("min", "mine.py")],
)
def test_an_unknown_name_has_a_suggestion(name, perhaps, empty_folder, capsys):
    (empty_folder / "mine.py").write_text("")
    assert cli.main(["train", name]) == 2
    line = f"jaxformer: {name}: no such config file or config of jaxformer; perhaps {perhaps}\n"
    assert capsys.readouterr().err == line


def test_a_name_unlike_any_other_lists_all():
    with pytest.raises(jf.InputError, match=r"^xyzzy: .*perhaps one of bert_base, .*, whisper_small$"):
        locate("xyzzy")


@pytest.mark.parametrize("name", ["mine", "mine.py"])
def test_new_writes_a_config_that_names_itself(name, empty_folder, capsys):
    assert cli.main(["new", name]) == 0
    assert capsys.readouterr().out == "mine.py · jaxformer train mine.py --workdir runs/mine\n"
    text = (empty_folder / "mine.py").read_text()
    assert "jaxformer train mine.py --workdir runs/mine" in text and "template" not in text
    experiment = jf.load("mine.py")
    assert experiment.tokenizer.vocab <= experiment.model.vocab


def test_new_overwrites_nothing(empty_folder, capsys):
    (empty_folder / "mine.py").write_text("mine")
    assert cli.main(["new", "mine"]) == 2
    assert capsys.readouterr().err == "jaxformer: mine.py: already exists; expected the name of a new file\n"
    assert (empty_folder / "mine.py").read_text() == "mine"
    assert cli.main(["new", "no/such/folder"]) == 2
    assert "no/such/folder.py: cannot be written: No such file or directory" in capsys.readouterr().err
    assert cli.main(["new"]) == 2


@pytest.mark.slow
def test_the_new_config_trains_as_it_is(empty_folder):
    """Its own model, data and tokenizer, for a few steps."""
    assert cli.main(["new", "mine"]) == 0
    few = ["--steps", "3", "--log.every", "1", "--optimizer.schedule.warmup", "1", "--evaluation.batches", "1"]
    command = [sys.executable, "-m", "jaxformer", "train", "mine.py", *few]
    done = subprocess.run(command, env=os.environ | tiny.flags(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = jf.open_run("runs/mine")
    assert run.step == 3 and run.with_decoding(max_new_tokens=4).predict("And it happened")


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxformer {jf.__version__}\n"
