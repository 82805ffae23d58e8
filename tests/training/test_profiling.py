"""Profiles of training steps."""

import re

import pytest
import tiny

from jaxformer import cli
from jaxformer.training import profiling
from jaxformer.training.profiling import Profile


@pytest.mark.slow
def test_train_writes_a_trace_of_some_steps_into_the_run(tiny_config, tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", str(tiny_config), "--steps", "10", "--workdir", str(run), "--profile"]) == 0
    (trace,) = (run / profiling.FOLDER).rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"train_step" in content and b"train" in content
    shown = capfd.readouterr()
    assert re.search(r"steps 4 to 8 are traced · xprof --logdir \S+/run/profile", shown.out + shown.err)
    assert [values["step"] for values in tiny.metrics(run)][-1] == 10


def test_a_profile_skips_the_first_steps_and_ends_with_the_run(tmp_path):
    for start, steps, traced in (
        (0, 100, (3, 8)),
        (40, 100, (43, 48)),
        (0, 6, (3, 6)),
        (0, 2, (1, 2)),
        (9, 10, (9, 10)),
    ):
        profile = Profile(tmp_path, start, steps)
        assert (profile.first, profile.last) == traced


def test_nothing_is_traced_unless_asked_for(tmp_path):
    with Profile(None, 0, 100) as profile:
        profile.before(3, ())
        assert profile.after(8, ()) == ""
    assert not list(tmp_path.iterdir())
