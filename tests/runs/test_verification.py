"""`jaxformer verify`: every part of a run's folder is compared with its digest."""

import shutil

import pytest
import tiny

import jaxformer as jf
from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.runs.verification import verify


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    experiment = tiny.load(tiny_config, steps=4, evaluation__every=2, checkpoint__every=2)
    return jf.fit(experiment, tmp_path_factory.mktemp("runs") / "run", quiet=True)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run's folder to do harm to."""
    return shutil.copytree(run.folder, tmp_path / "copy")


def flip(path, index=None):
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if index is None else index] ^= 1
    path.write_bytes(content)


def test_a_good_run_is_good(run, capsys):
    assert cli.main(["verify", str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["experiment.json", "data.json", "tokenizer", "metrics.jsonl"]
    names += ["sessions.jsonl", "checkpoints/4", "checkpoints/2"]
    assert [line.split()[0] for line in lines] == names and all(" good, " in line for line in lines)


@pytest.mark.parametrize(
    "file", ["experiment.json", "metrics.jsonl", "tokenizer/tokenizer.json", "checkpoints/2/lanes/_METADATA"]
)
def test_a_damaged_file_is_named(file, copy, capsys):
    flip(copy / file)
    assert cli.main(["verify", str(copy)]) == 2
    shown = capsys.readouterr()
    [line] = [line for line in shown.out.splitlines() if " good, " not in line]
    part = line.split()[0]
    assert file.startswith(part) and "damaged" in line
    assert shown.err == f"jaxformer: {copy}: 1 of 7 parts are damaged: {part}\n"


def test_each_kind_of_damage_of_a_checkpoint_is_named(copy):
    folder = copy / "checkpoints" / "4"
    (folder / "mine").touch()
    (folder / "params" / "_sharding").unlink()
    (folder / "commit_success.txt").unlink()
    found = {part.name: part.problem for part in verify(copy)}
    assert found["checkpoints/4"] == "damaged: mine does not belong there (and 2 more)"
    assert found["checkpoints/2"] == ""


def test_another_folder_is_refused(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err


def test_a_damaged_experiment_is_refused_and_an_edited_one_is_not(copy):
    path = copy / "experiment.json"
    path.write_text(path.read_text().replace('"steps": 4', '"steps": 5'))
    with pytest.raises(InputError, match=rf"{path}: damaged: its content does not match its digest; put a good copy"):
        jf.open_run(copy)
    first, _, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *rest]))
    assert jf.open_run(copy).experiment.steps == 5
    assert next(part.content for part in verify(copy)) == "edited by hand: it has no digest"


def test_a_damaged_tokenizer_is_refused(copy, run):
    flip(copy / "tokenizer" / "tokenizer.json")
    for use in (jf.open_run, lambda folder: jf.fit(run.experiment, folder, quiet=True)):
        with pytest.raises(InputError, match=rf"{copy / 'tokenizer'}: damaged: tokenizer.json has another content"):
            use(copy)


def test_patience_never_counts_a_damaged_line(copy, run):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    changed = [line.replace('"split": "validation"', '"split": "validatioN"', 1) for line in lines]
    assert changed != lines
    (copy / "metrics.jsonl").write_text("".join(changed))
    with pytest.warns(UserWarning, match=r"metrics.jsonl: line \d is damaged, and is left out"):
        assert {line["split"] for line in jf.open_run(copy).history} == {"train"}
