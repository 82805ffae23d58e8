"""Processes that would not train the same run are refused, and it is said which and why."""

import importlib
from pathlib import Path

import pytest
from small_bert import small_experiment, small_transformer

from jaxformer.errors import InputError
from jaxformer.training import agreement


@pytest.fixture
def others(monkeypatch):
    """Results of further processes, which `gather` adds to that of this one."""
    added = []
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 1 + len(added))
    monkeypatch.setattr(agreement.processes, "gather", lambda function: [function(), *added])
    return added


def test_facts_are_the_fields_by_their_paths_and_the_folder():
    facts = agreement.facts(small_experiment(), Path("runs/x"))
    assert facts["--workdir"] == "runs/x" and facts["seed"] == "0"
    assert facts["data.task.length"].isdecimal() and facts["model.class"] == "'jaxformer.models.bert.Bert'"
    assert not any(name.startswith("code of") for name in facts)


def test_another_field_or_folder_is_named(others):
    experiment, folder = small_experiment(), Path("runs/x")
    others += [agreement.facts(experiment, folder)] * 2
    agreement.check_same(experiment, folder)
    others[1] = agreement.facts(small_experiment(seed=3), Path("runs/y"))
    with pytest.raises(
        InputError, match=r"^process 2 differs from process 0: --workdir runs/y, not runs/x; seed 3, not 0$"
    ):
        agreement.check_same(experiment, folder)


def test_the_code_of_a_class_that_is_not_jaxformers_is_compared(tmp_path, monkeypatch):
    code = "import dataclasses\nfrom jaxformer.models.bert import Bert\n\n\nclass Mine(Bert):\n    pass\n"
    digests = []
    for number in range(2):
        (tmp_path / f"mine{number}.py").write_text(code + "# new\n" * number)
        monkeypatch.syspath_prepend(tmp_path)
        model = importlib.import_module(f"mine{number}").Mine(small_transformer(), vocab=16, max_length=24)
        digests.append(agreement.facts(small_experiment(model), Path("x"))[f"code of mine{number}"])
    assert digests[0] != digests[1]


def test_a_folder_that_some_hosts_do_not_see_is_refused(others, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "LATE", 0)
    others += [False, True, False]
    with pytest.raises(InputError, match=r"--workdir .*: process 0, 1, 3 does not see it; expected a folder that all"):
        agreement.check_shared(tmp_path)
    monkeypatch.setattr(agreement, "LATE", 1)
    (tmp_path / "experiment.json").touch()
    with pytest.raises(InputError, match="process 1, 3 does not see it"):
        agreement.check_shared(tmp_path)
    others[:] = [True]
    agreement.check_shared(tmp_path)
