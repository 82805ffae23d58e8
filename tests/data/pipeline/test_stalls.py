"""Processes that prepare batches: stopped, stalled and orphaned ones. Real processes and signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import loading_process
import pytest


@pytest.fixture
def start(tokenizer, tmp_path):
    """Starts a process that reads batches, and kills it in the end."""
    tokenizer.save(str(tmp_path / "tokenizer"))
    started = []

    def run(workers):
        command = [sys.executable, loading_process.__file__, str(tmp_path), str(workers)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def is_alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_ends_the_run_and_no_worker_outlives_it(start):
    process = start(2)
    first, second = map(int, process.stdout.readline().split())
    os.kill(first, signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    said = (
        f"\njaxformer: data.timeout=2: no batch within this time; worker process {first} is stopped; what each thread"
    )
    assert said in errors and f"\nworker process {second}:\n" in errors
    until = time.monotonic() + 20
    while is_alive(first) or is_alive(second):
        assert time.monotonic() < until, "orphaned workers"
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(start):
    process = start(1)
    (worker,) = map(int, process.stdout.readline().split())
    process.kill()
    until = time.monotonic() + 20
    while is_alive(worker):
        assert time.monotonic() < until, "an orphaned worker"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stalled_source_prints_where_it_is(start, tmp_path):
    process = start(0)
    process.stdout.readline()
    (tmp_path / "slow").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "in wait_forever" in errors
    assert errors.splitlines()[-1].startswith("jaxformer: data.timeout=2: no batch within this time; what each thread")
