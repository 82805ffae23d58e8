"""Which classes the JSON of a run may name, and that nothing else is ever imported for it."""

import json
import os
import subprocess
import sys

import pytest
import tiny

import jaxformer as jf
from jaxformer import classes, cli, config
from jaxformer.errors import InputError
from jaxformer.runs import writing

PAYLOAD = """
import dataclasses
import pathlib

from jaxformer.objectives.masked_lm import MaskedLM

pathlib.Path({ran!r}).write_text("imported")


@dataclasses.dataclass(frozen=True)
class Mine(MaskedLM):
    pass
"""


@pytest.fixture
def experiment(tiny_config):
    return tiny.load(tiny_config, steps=1)


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setattr(classes, "_allowed", set())


def write_package(folder, name):
    """A module that writes a file when it is imported; the file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(PAYLOAD.format(ran=str(folder / "ran")))
    return folder / "ran"


def write_run(folder, experiment, name):
    """A run's folder whose objective is the class of a module."""
    folder.mkdir(exist_ok=True)
    values = json.loads(config.to_json(experiment))
    values["objective"]["class"] = f"{name}.Mine"
    (folder / "experiment.json").write_text(json.dumps(values))
    return folder


OPEN = "import sys, jaxformer as jf; sys.argv[2:] and jf.allow(sys.argv[2]); jf.open_run(sys.argv[1])"
WAYS = {
    "python -m jaxformer": (["-m", "jaxformer", "evaluate", "."], ["--allow", "payload"]),
    "open_run": (["-c", OPEN, "."], ["payload"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command, allow", WAYS.values(), ids=WAYS)
def test_nothing_in_a_runs_folder_or_the_current_one_is_imported(command, allow, experiment, tmp_path):
    folder = write_run(tmp_path / "run", experiment, "payload")
    ran = write_package(folder, "payload")
    environment = os.environ | {"PYTHONPATH": ".", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    for more, said in (([], "add --allow payload"), (allow, "never imported from")):
        process = [sys.executable, *command, *more]
        done = subprocess.run(process, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and not ran.exists(), done.stderr
        line = done.stderr.splitlines()[-1]
        assert "objective.class='payload.Mine'" in line and said in line
        assert done.stderr.count("\n") == 1 or command[0] == "-c"


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "A [MASK]."], ["export", "out"]])
def test_a_class_of_another_package_is_named_with_the_flag_and_not_imported(
    command, experiment, tmp_path, capsys, monkeypatch
):
    folder, ran = write_run(tmp_path / "run", experiment, "strange_package"), tmp_path / "strange"
    monkeypatch.syspath_prepend(ran.parent / "installed")
    ran = write_package(tmp_path / "installed", "strange_package")
    name, *rest = command
    assert cli.main([name, str(folder), *rest]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(folder / "experiment.json") in line
    assert "objective.class='strange_package.Mine'" in line and "--allow strange_package" in line
    assert not ran.exists()


def test_a_package_that_is_allowed_is_imported_from_where_it_is_installed(experiment, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", experiment, "installed_one")
    planted = [write_package(where, "installed_one") for where in (folder, tmp_path / "here")]
    ran = write_package(tmp_path / "installed", "installed_one")
    monkeypatch.chdir(tmp_path / "here")
    for path in (tmp_path / "installed", folder, "", tmp_path / "here"):
        monkeypatch.syspath_prepend(str(path))
    before = sys.path[:]
    jf.allow("installed_one")
    assert type(writing.read_experiment(folder).objective).__module__ == "installed_one"
    assert ran.exists() and not any(path.exists() for path in planted)
    assert sys.path == before


def test_the_classes_of_the_experiment_at_hand_need_no_permission(experiment, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_package(tmp_path, "at_hand")
    import at_hand

    mine = config.override(experiment, {"objective": at_hand.Mine()})
    with writing.writer(tmp_path / "run", mine) as claimed:
        claimed.start(config.to_json(mine))
    with writing.writer(tmp_path / "run", mine):
        pass  # The same run again, of the same config.
    with pytest.raises(InputError, match="--allow at_hand"):
        writing.read_experiment(tmp_path / "run")
    every = mine.checkpoint.every
    with pytest.raises(InputError, match=f"no checkpoint yet; one is written every {every} steps and at its end"):
        jf.open_run(tmp_path / "run", known=mine)
    jf.allow("at_hand")
    assert writing.read_experiment(tmp_path / "run") == mine


@pytest.mark.parametrize("name", ["jaxformer.__main__.Mine", "jaxformer.data._private.Mine", "os.path", "at.hand"])
def test_private_modules_and_those_of_others_are_not_imported(name, monkeypatch):
    imported = []
    monkeypatch.setattr(classes.importlib, "import_module", imported.append)
    with pytest.raises(InputError, match="add --allow"):
        classes.dataclass_named(name, "model.class")
    assert not imported


def test_a_package_may_be_allowed_in_part():
    jf.allow("json.decoder")
    with pytest.raises(InputError, match="expected the name of a dataclass"):
        classes.dataclass_named("json.decoder.JSONDecoder", "model.class")
    with pytest.raises(InputError, match="add --allow json"):
        classes.dataclass_named("json.tool.Anything", "model.class")


@pytest.mark.parametrize("name", ["", "../here", "a b", "-x", "a..b", "a."])
def test_names_that_are_not_packages_cannot_be_allowed(name):
    with pytest.raises(InputError, match="expected the name of a package"):
        jf.allow(name)


def test_a_package_that_fails_is_named_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    jf.allow("broken_one", "missing_one")
    with pytest.raises(InputError, match=r"x='broken_one.A': importing broken_one failed: ZeroDivisionError"):
        classes.dataclass_named("broken_one.A", "x")
    with pytest.raises(InputError, match=r"x='missing_one.A': no module missing_one is installed"):
        classes.dataclass_named("missing_one.A", "x")


def test_a_class_that_only_another_version_has_is_refused_as_such():
    with pytest.raises(
        InputError, match=r"model.class='jaxformer.models.gone.Gone': .*; this version of jaxformer has"
    ):
        classes.dataclass_named("jaxformer.models.gone.Gone", "model.class")
