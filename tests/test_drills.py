"""`jaxformer drill` with few faults, on a small run."""

import pytest
import tiny

from jaxformer import cli
from jaxformer.drills import failing_storage, faults, processes, storage_faults
from jaxformer.drills.command import DRILLS, planned
from jaxformer.drills.scratch import EVERY, Scratch, small
from jaxformer.errors import InputError
from jaxformer.parallel.sharding import Mesh


@pytest.fixture(scope="module")
def scratch(tiny_config, tmp_path_factory):
    """A folder with an undisturbed run."""
    home = tmp_path_factory.mktemp("drill")
    return Scratch(home / "runs", small(tiny.load(tiny_config, mesh=Mesh(1))), home)


def survived(outcome, harmless=0):
    """Every fault was detected, except for those that change nothing that is read."""
    assert not outcome.problems and outcome.detected + outcome.harmless == outcome.tried
    assert outcome.harmless <= harmless and len(outcome.seconds) == outcome.tried
    return outcome


@pytest.mark.slow
def test_flipped_bits_truncations_and_foreign_files_are_detected(scratch):
    # Nothing reads the two files that Orbax writes after the digests.
    assert survived(faults.flips(scratch, 12), harmless=2).lost == 2
    assert survived(faults.truncations(scratch, 6), harmless=2).lost == 2
    assert survived(faults.foreign(scratch, 0)).tried > 5


@pytest.mark.slow
def test_every_deleted_file_is_detected(scratch):
    assert survived(faults.deletions(scratch, 0)).lost == 2


@pytest.mark.slow
def test_wrong_arrays_are_reported(scratch, monkeypatch):
    """So a drill can fail."""
    path, array = next(iter(scratch.expected.items()))
    assert processes.difference(scratch, scratch.undisturbed) == ""
    monkeypatch.setitem(scratch.expected, path, array + 1)
    said = f"{path} differs from the undisturbed run"
    assert processes.difference(scratch, scratch.undisturbed) == f"{scratch.undisturbed}: {said}"
    outcome = faults._damage(scratch, "edits", [("_CHECKPOINT_METADATA", 0)], lambda content, _: content)
    assert outcome.problems == [f"edits at byte 0 of _CHECKPOINT_METADATA: {said}"] and outcome.detected == 0


@pytest.mark.slow
def test_kills_and_signals_lose_only_what_was_not_saved(scratch):
    outcome = processes.kills(scratch, 1)
    assert not outcome.problems and outcome.detected == 1 and outcome.lost <= 2 * EVERY
    outcome = processes.stops(scratch, 1)
    assert not outcome.problems and (outcome.detected, outcome.lost) == (2, 0)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_line_and_keeps_its_checkpoints(scratch):
    built = failing_storage.library(scratch.local)
    if built is None:
        pytest.skip("there is no C compiler")
    folder = scratch.new("full")
    _, problem = storage_faults.failing(scratch, folder, "full", built, 3 * EVERY)  # The first is saved then.
    assert problem == "" and scratch.good(folder)[0] >= EVERY


@pytest.mark.slow
def test_changed_data_is_noticed(scratch):
    assert survived(faults.changed_data(scratch, 5)).tried == 7


@pytest.mark.slow
def test_the_command_prints_a_table_and_removes_its_runs(tiny_config, tmp_path, capsys):
    arguments = ["drill", str(tiny_config), "--only", "data", "--only", "foreign", "--mesh.data", "1"]
    assert cli.main([*arguments, "--workdir", str(tmp_path / "runs")]) == 0
    table = capsys.readouterr().out
    assert "changed data" in table and "foreign files" in table and "lost steps" in table
    assert not (tmp_path / "runs" / "drill").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--only", "flood"], "--only flood: expected one of kill"),
        (["--count", "0"], "--count 0: expected at least 1"),
        (["--data.batch", "0"], "data.batch"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said, tiny_config, capsys):
    assert cli.main(["drill", str(tiny_config), *arguments]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_a_folder_that_exists_is_refused_and_kept(tiny_config, tmp_path):
    (tmp_path / "drill").mkdir()
    with pytest.raises(InputError, match="exists already"):
        planned([str(tiny_config)], str(tmp_path))
    assert (tmp_path / "drill").exists()


def test_help_lists_the_drills(capsys):
    assert cli.main(["drill", "--help"]) == 0
    assert f"one of {', '.join(DRILLS)};" in capsys.readouterr().out
