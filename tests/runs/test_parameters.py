"""Reading a checkpoint while a training replaces it."""

import pytest

from jaxformer.runs import parameters
from jaxformer.training.damage import Damaged


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "PAUSE", 0)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    return tmp_path


def replaced(folder, step):
    """A training saves another checkpoint and removes the one before."""
    (folder / "checkpoints" / str(step)).rmdir()
    (folder / "checkpoints" / str(step + 2)).mkdir()


@pytest.mark.parametrize("problem", [Damaged("gone"), FileNotFoundError("gone"), None])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(problem, folder):
    steps = []

    def attempt():
        (path,) = (folder / "checkpoints").iterdir()
        steps.append(int(path.name))
        if len(steps) == 3:
            return steps[-1], {}, []
        replaced(folder, steps[-1])
        if problem:
            raise problem
        return steps[-1], {}, ["an older one was read, because this one is gone"]

    assert parameters._beside_a_writer(folder, attempt) == (6, {}, []) and steps == [2, 4, 6]


def test_a_damaged_checkpoint_is_reported_if_nothing_replaces_it(folder):
    def damaged():
        raise Damaged("a bit is wrong")

    with pytest.raises(Damaged, match="a bit is wrong"):
        parameters._beside_a_writer(folder, damaged)
    assert parameters._beside_a_writer(folder, lambda: (2, {}, ["4 is damaged"])) == (2, {}, ["4 is damaged"])
