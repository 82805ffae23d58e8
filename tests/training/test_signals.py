"""Signals to real processes: before, during and after a training, and while a library does not return."""

import json
import subprocess
import sys

import pytest
import stopping_process

from jaxformer.ending import STOPPED
from jaxformer.training import moments
from jaxformer.training.moments import SaveClock


@pytest.fixture(scope="module")
def ends():
    """How the process of each case ended: the exit status, the seconds, and what it printed."""
    command = [sys.executable, stopping_process.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_signal_ends_a_run_at_once_while_nothing_would_be_lost(ends):
    status, seconds, said = ends["before the first step"]
    message = "stopped by SIGTERM before its first step: nothing is lost; run the same command to continue"
    assert (status, said) == (STOPPED, f"cleaned up: {message}\n") and seconds < 3
    status, seconds, said = ends["after the last step"]
    message = "stopped by SIGINT after its last step: nothing is lost; the run is complete"
    assert (status, said) == (0, f"cleaned up: {message}\n") and seconds < 3


@pytest.mark.slow
def test_a_signal_ends_a_run_whose_main_thread_does_not_return(ends):
    """Python runs signal handlers only in the main thread, which may be in a compiler for minutes."""
    status, seconds, said = ends["before the first step, in a library"]
    assert status == STOPPED and said.startswith("jaxformer: stopped by SIGTERM before its first step: nothing is lost")
    assert seconds < 30
    status, seconds, said = ends["not saved in time"]
    assert status == STOPPED and seconds < 30
    assert said.startswith("jaxformer: stopped by SIGTERM: not saved within checkpoint.grace=0.3 seconds; run the same")
    status, seconds, said = ends["twice, in a library"]
    assert (status, said) == (130, "jaxformer: interrupted\n") and seconds < 30


def test_checkpoints_are_due_by_the_time_since_the_last_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(moments, "time", type("Clock", (), {"monotonic": lambda: now[0]}))
    clock, never = SaveClock(2.0), SaveClock(None)
    for seconds, due in ((60, False), (59, False), (1, True), (5, True)):
        now[0] += seconds
        assert clock.due(logged=False) == due and not never.due(logged=True)
    clock.restart()
    assert not clock.due(logged=True)
