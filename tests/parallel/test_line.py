"""Lines between processes: who is missing or differs is named, and the end of one ends all."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import line_process
import pytest

from jaxformer.errors import InputError
from jaxformer.parallel.cluster import Place
from jaxformer.parallel.line import Line
from jaxformer.parallel.meeting import differing


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet(places, facts=None, wait=10.0):
    """The lines of processes at these places, or the errors that they raise; each in a thread of its own."""
    results = [None] * len(places)

    def run(index):
        try:
            results[index] = Line.open(places[index], (facts or [{"jax": "1"}] * len(places))[index], wait)
        except InputError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def places(*numbers, count=None, port=None):
    port = port or free_port()
    return [Place(f"127.0.0.1:{port}", count or len(numbers), number) for number in numbers]


def test_all_meet_and_the_port_is_free_for_another_server_afterwards():
    port = free_port()
    lines = meet(places(0, 1, 2, port=port))
    assert all(isinstance(line, Line) for line in lines)
    with socket.create_server(("127.0.0.1", port)):
        pass
    for line in lines:
        line.done()


@pytest.mark.parametrize(
    ("numbers", "count", "message"),
    [
        ((0, 1), 4, r"processes 2, 3 of 4 did not connect within 0.5 s at 127.0.0.1:\d+: .*--wait"),
        ((0,), 2, r"process 1 of 2 did not connect within 0.5 s"),
    ],
)
def test_those_that_do_not_arrive_are_named_everywhere(numbers, count, message):
    for said in meet(places(*numbers, count=count), wait=0.5):
        assert re.match(message, said), said


def test_a_coordinator_that_does_not_answer_is_named_after_a_bounded_wait():
    began = time.monotonic()
    (said,) = meet(places(1, count=2), wait=0.5)
    assert re.match(r"process 0 of 2 does not answer at 127.0.0.1:\d+; waited 0.5 s: Connection refused; ", said)
    assert time.monotonic() - began < 10


def test_a_host_without_an_address_is_named():
    (said,) = meet([Place("no-such-host.invalid:8476", 2, 1)], wait=0.5)
    assert said.startswith("process 0 of 2 does not answer at no-such-host.invalid:8476; waited 0.5 s: ")


def test_another_server_at_the_address_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        (place,) = places(1, count=2, port=server.getsockname()[1])

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1 << 16)

        other = threading.Thread(target=answer)
        other.start()
        (said,) = meet([place])
        other.join()
    assert said == f"--coordinator {place.coordinator}: another program answers there, not process 0"


def test_an_address_that_is_taken_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        (place,) = places(0, count=2, port=server.getsockname()[1])
        (said,) = meet([place])
    assert said == f"--coordinator {place.coordinator}: cannot listen there: Address already in use"


def test_strangers_are_ignored():
    one, other = places(0, 1)
    results = []
    waiting = threading.Thread(target=lambda: results.extend(meet([one])))
    waiting.start()
    for _ in range(100):
        try:
            with socket.create_connection(one.address) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert stranger.recv(1) == b""
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    results += meet([other])
    waiting.join()
    assert [type(line) for line in results] == [Line, Line]
    for line in results:
        line.done()


def test_processes_that_differ_are_refused_and_what_differs_is_named():
    said = meet(places(0, 1), [{"jax": "0.10.2", "code": "a"}, {"jax": "0.9.0", "code": "a"}])
    assert said == ["process 1 differs from process 0: jax 0.9.0, not 0.10.2"] * 2


def test_two_processes_of_one_number_and_another_count_are_refused():
    port = free_port()
    said = meet(places(0, 1, 1, port=port))
    assert re.match(r"two processes are number 1 of 3: .*, pid \d+ and ", said[0])
    port = free_port()
    said = meet([*places(0, count=2, port=port), *places(1, count=3, port=port)])
    assert re.fullmatch(r"process 1 \(.*\) expects 3 processes, process 0 2", said[0])


def test_three_differences_are_shown_and_the_others_counted():
    one, other = (dict.fromkeys("abcde", value) for value in "12")
    assert (
        differing(0, one, 3, other)
        == "process 3 differs from process 0: a 2, not 1; b 2, not 1; c 2, not 1; and 2 more"
    )
    assert differing(0, {"a": "1"}, 1, {}) == "process 1 differs from process 0: a none, not 1"
    assert differing(0, one, 1, dict(one)) == ""


def run(*what, silence=25):
    """A process for each, that does it once all have met."""
    port = free_port()
    command, pipe = [sys.executable, line_process.__file__, port, len(what)], subprocess.PIPE
    started = [
        subprocess.Popen(list(map(str, [*command, number, 30, one, silence])), stdout=pipe, stderr=pipe, text=True)
        for number, one in enumerate(what)
    ]
    for process in started:
        process.stdout.readline()  # "met", unless another one has ended it before.
    return started


def ends(started):
    """The exit status and the errors of each process, which have to end within ten seconds."""
    ended = []
    for process in started:
        try:
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
        ended.append((process.returncode, errors.strip()))
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_death_of_one_ends_all_others_and_is_named(killed):
    started = run("wait", "wait", "wait")
    os.kill(started[killed].pid, signal.SIGKILL)
    for number, (status, errors) in enumerate(ends(started)):
        if number == killed:
            assert status == -signal.SIGKILL
            continue
        assert status == 1
        name = rf"process {killed} of 3 \(.*, pid {started[killed].pid}\)"
        assert re.fullmatch(rf"jaxformer: process {number} of 3: {name} ended without a message: killed, .*", errors)


@pytest.mark.slow
@pytest.mark.parametrize("failed", [0, 1])
def test_an_error_in_one_ends_all_with_its_message_and_status(failed):
    for what, status, message in (("raise", 1, "RuntimeError: the reason"), ("refuse", 2, "the field is wrong")):
        doing = ["wait"] * 3
        doing[failed] = what
        for number, (ended, errors) in enumerate(ends(run(*doing))):
            assert ended == status, errors
            if number == failed:
                assert errors == f"jaxformer: process {number} of 3: {message}"
            else:
                by = rf"process {failed} of 3 \(.*\) failed: {message}"
                assert re.fullmatch(rf"jaxformer: process {number} of 3: {by}", errors)


@pytest.mark.slow
def test_processes_may_end_well_one_after_the_other():
    assert ends(run("end", "end", "end")) == [(0, "")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_ends_the_others_and_is_named(stopped):
    """It keeps its connection, but sends nothing, like a process whose host is lost."""
    started = run("wait", "wait", "wait", silence=1)
    os.kill(started[stopped].pid, signal.SIGSTOP)
    others = [process for number, process in enumerate(started) if number != stopped]
    name = rf"process {stopped} of 3 \(.*, pid {started[stopped].pid}\)"
    for status, errors in ends(others):
        assert status == 1 and re.search(rf"{name} has sent nothing for \d s: stopped, or its host", errors), errors
    started[stopped].kill()
    started[stopped].communicate()
