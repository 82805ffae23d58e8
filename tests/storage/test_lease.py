"""One writer at a time in a bucket: leases that are renewed, run out, are given back and are lost."""

import json
import time

import pytest
from small_config import message

from jaxformer import conditional, storage
from jaxformer.runs import lease
from jaxformer.runs.lease import Lease


@pytest.fixture
def path(bucket):
    return storage.path(bucket.path("run/.lease"))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 1.0)


@pytest.fixture
def without_renewals(monkeypatch):
    monkeypatch.setattr(Lease, "_renew_repeatedly", lambda self: None)


def test_an_object_is_written_at_the_version_that_was_seen_only(path):
    assert conditional.read(path) is None
    first = conditional.write(path, b"1", None)
    with pytest.raises(conditional.Changed):
        conditional.write(path, b"2", None)
    second = conditional.write(path, b"3", first)
    with pytest.raises(conditional.Changed):
        conditional.write(path, b"4", first)
    seen = conditional.read(path)
    assert (seen.content, seen.version) == (b"3", second) and 0 <= seen.age <= 60
    conditional.remove(path, first)
    assert conditional.read(path) is not None
    conditional.remove(path, second)
    assert conditional.read(path) is None
    with pytest.raises(conditional.Changed):
        conditional.write(path, b"5", second)


@pytest.mark.slow
def test_a_second_writer_is_refused_while_the_first_one_renews(path, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 8.0)
    first = Lease(path)
    line = message(Lease, path)
    assert "another process is writing this run (process " in line and str(path.parent) in line
    assert first.problem() == ""
    first.release()
    second = Lease(path)  # At once.
    assert second.problem() == "" and not second.is_new
    second.release()


@pytest.mark.slow
def test_a_lease_that_is_not_renewed_is_taken_over_and_its_owner_knows(path, short, without_renewals):
    first = Lease(path)
    began = time.monotonic()
    second = Lease(path)
    assert 0.5 < time.monotonic() - began < 30
    assert "has been taken over by process" in first.problem()
    first.release()  # It is not the first one's any more.
    assert second.problem() == ""
    assert json.loads(conditional.read(path).content)["released"] is False


def test_a_lease_that_was_not_renewed_in_time_but_not_taken_is_kept(path, short, without_renewals):
    only = Lease(path)
    only._began -= 100
    assert only.problem() == ""
    conditional.remove(path, conditional.read(path).version)
    only._began -= 100
    assert "was removed" in only.problem()


def test_a_renewal_whose_answer_is_lost_is_one(path, without_renewals):
    only = Lease(path)
    conditional.write(path, only._content(), only._version)  # As if it were sent twice.
    only._began -= 100
    assert only.problem() == ""
    only.release(remove=True)
    assert conditional.read(path) is None


def test_a_bucket_that_may_not_be_written_is_reported(bucket, path):
    bucket.faults.add(lambda method, url: method in ("POST", "PUT"), 403, times=20)
    line = message(Lease, path)
    assert "cannot be written" in line and "access is denied" in line
