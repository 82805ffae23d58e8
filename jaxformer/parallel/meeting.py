"""Connects the processes of a run to process 0 at the start of the run, and reports which processes are missing, or run
other versions of packages or code.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from jaxformer.errors import InputError
from jaxformer.parallel.cluster import Place

Message = dict[str, Any]
GREETING = "jaxformer"
"""Key that identifies the first message of a process, a JSON object. Its value is the version of this protocol."""
MAX_MESSAGE_BYTES = 1 << 20
"""Maximum size of a message in bytes."""
PATIENCE = 10.0
"""Number of seconds of waiting before a line about missing processes is printed for the first time. The waiting time
triples for each further line.
"""
RETRY = 0.2
"""Number of seconds between two attempts to connect."""
GRACE = 15.0
"""Number of additional seconds that the other processes wait after the time limit of process 0, so that they receive
its error message.
"""


class Channel:
    """Connection to another process that sends and receives messages over a socket."""

    def __init__(self, connection: socket.socket):
        self.connection, self._received, self._lock = connection, b"", threading.Lock()
        self.unread: list[Message] = []
        """Messages that arrived together with the first message, and have not been handled yet."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Detects a lost machine, which cannot close its connection: after 15 s of silence, 3 probes are sent 5 s apart.
        for option, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # The same limit for sent data that is not acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    def send(self, message: Message) -> None:
        """Sends a message. Ignores a closed connection, because `receive` reports it."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """Waits for data, and returns the messages that have arrived completely. The list is empty if only a part of a
        message has arrived.

        Raises:
          EOFError: If the connection is closed.
          ValueError: If the data is not in the format of this protocol.
        """
        try:
            new = self.connection.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            new = b""
        if not new:
            raise EOFError
        *lines, self._received = (self._received + new).split(b"\n")
        if len(self._received) > MAX_MESSAGE_BYTES:
            raise ValueError("too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not an object")
        return messages


def finish(channels: Collection[Channel]) -> None:
    """Ends the connections: closes their sending side, and waits up to two seconds for the other processes to close
    theirs, so that these receive all messages.
    """
    ending = time.monotonic() + 2
    for channel in channels:
        with contextlib.suppress(OSError):
            channel.connection.shutdown(socket.SHUT_WR)
    for channel in channels:
        with contextlib.suppress(OSError):
            channel.connection.settimeout(max(0.01, ending - time.monotonic()))
            while channel.connection.recv(1 << 16):
                pass


def accept_processes(place: Place, own: Message, wait: float) -> tuple[dict[int, Channel], dict[int, str]]:
    """Waits in process 0 until all other processes have connected, and checks that they belong to the same run.

    Args:
      place: index of this process, number of processes and address of process 0.
      own: first message of process 0, with its name and its facts (values that must be the same in all processes).
      wait: number of seconds to wait.

    Returns:
      A dict of connections and a dict of process names (host and pid), both keyed by process index. The second one
      includes process 0.
    """
    met: dict[int, Channel] = {}
    names = {0: own["name"]}
    try:
        with _listening(place) as server:
            for channel, greeting in _arrivals(place, server, wait, met):
                _check_greeting(place, greeting, names)
                number = greeting["process"]
                met[number], names[number] = channel, str(greeting.get("name"))
                problem = _difference(own, greeting)
                if problem:
                    raise InputError(problem)
    except InputError as error:
        for channel in met.values():
            channel.send({"failed": str(error), "status": 2})
        finish(met.values())
        raise
    for channel in met.values():
        channel.send({"go": True, "name": own["name"]})
    return met, names


@contextlib.contextmanager
def _listening(place: Place) -> Iterator[socket.socket]:
    """Context manager that opens a socket at the coordinator's address, and listens for connections. The `with` block
    must end before JAX uses the same port.
    """
    host, port = place.address
    try:
        if place.is_local:
            server = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        elif socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"--coordinator {place.coordinator}: cannot listen there: {reason}") from error
    server.listen(min(place.processes, 4096))
    with server:
        yield server


def _arrivals(
    place: Place, server: socket.socket, wait: float, met: dict[int, Channel]
) -> Iterator[tuple[Channel, Message]]:
    """Yields the connection and the first message of each process that connects to process 0, until all processes are
    in `met`.

    Args:
      place: index of this process, number of processes and address of process 0.
      server: socket that listens for connections.
      wait: number of seconds to wait.
      met: maps the indices of connected processes to their connections. The caller adds to it.

    Raises:
      InputError: If not all processes have connected in time, or one of them ends.
    """
    waits = _Waits(wait, f"{place}: waiting at {place.coordinator} for", lambda: _missing(place, met))
    strangers: dict[socket.socket, Channel] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        while len(met) < place.processes - 1:
            if waits.over:
                raise InputError(
                    f"{_missing(place, met)} did not connect within {wait:g} s at {place.coordinator}: look at their "
                    "errors, or wait longer with --wait"
                )
            for key, _ in waiting.select(waits.next):
                if key.fileobj is server:
                    connection, _ = server.accept()
                    strangers[connection] = Channel(connection)
                    waiting.register(connection, selectors.EVENT_READ)
                    continue
                connection: Any = key.fileobj
                gone = [number for number, channel in met.items() if channel.connection is connection]
                if gone:
                    raise InputError(
                        f"process {gone[0]} of {place.processes} ended while processes were still connecting"
                    )
                channel = strangers[connection]
                try:
                    messages = channel.receive()
                except (EOFError, ValueError):
                    messages = [{}]
                if messages and messages[0].get(GREETING) == 1:
                    greeting, *channel.unread = messages
                    yield channel, greeting
                elif messages:  # A connection from another program.
                    waiting.unregister(connection)
                    connection.close()


def _missing(place: Place, met: dict[int, Channel]) -> str:
    """Names the processes that have not connected yet, such as "processes 2, 5 of 8". Lists up to ten indices. The keys
    of `met` are the indices of the processes that have connected.
    """
    missing = [number for number in range(1, place.processes) if number not in met]
    numbers = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    return f"process{'es' if len(missing) > 1 else ''} {numbers} of {place.processes}"


def _check_greeting(place: Place, greeting: Message, names: dict[int, str]) -> None:
    """Raises InputError if the first message of another process (`greeting`) contains an index that is invalid or
    already taken, or another number of processes. `names` contains the processes that have connected, by index.
    """
    number, count, name = greeting.get("process"), greeting.get("processes"), greeting.get("name")
    if count != place.processes:
        raise InputError(f"process {number} ({name}) expects {count} processes, process 0 {place.processes}")
    if not isinstance(number, int) or not 0 < number < place.processes:
        raise InputError(f"process {number} ({name}): expected a number below {place.processes}")
    if number in names:
        raise InputError(f"two processes are number {number} of {place.processes}: {names[number]} and {name}")


def _difference(own: Message, other: Message) -> str:
    """Describes how the facts in the first message of another process (values such as package versions) differ from the
    facts of process 0, whose first message is `own`. Returns an empty string if all are the same.
    """
    ours, others = own["facts"], other.get("facts")
    if not isinstance(others, dict):
        return f"process {other['process']} ({other.get('name')}) gives no facts"
    return differing(own["process"], ours, other["process"], others)


def differing(number: int, facts: dict[str, str], other: int, others: dict[str, str]) -> str:
    """Describes on one line how the facts of two processes (values such as package versions) differ. Lists up to three
    of them. Returns an empty string if all are the same.

    Args:
      number: index of the first process.
      facts: maps the names of facts to their values in the first process.
      other: index of the second process.
      others: maps the names of facts to their values in the second process.
    """
    names = [name for name in sorted(facts.keys() | others.keys()) if facts.get(name) != others.get(name)]
    if not names:
        return ""
    shown = "; ".join(f"{name} {others.get(name, 'none')}, not {facts.get(name, 'none')}" for name in names[:3])
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    return f"process {other} differs from process {number}: {shown}{more}"


def join_process_0(place: Place, own: Message, wait: float) -> tuple[dict[int, Channel], dict[int, str]]:
    """Connects this process to process 0, and waits until all processes have connected. Takes the same arguments as
    `accept_processes`, and returns two dicts of the same form, which contain only the connection to process 0 and its
    name.
    """
    channel = Channel(_connect(place, wait))
    channel.send(own)
    channel.connection.settimeout(wait + GRACE)
    try:
        messages: list[Message] = []
        while not messages:
            messages = channel.receive()
    except TimeoutError as error:
        raise InputError(f"process 0 of {place.processes} does not answer at {place.coordinator}") from error
    except EOFError as error:
        raise InputError(f"process 0 of {place.processes} ended while processes were still connecting") from error
    except ValueError as error:
        raise InputError(f"--coordinator {place.coordinator}: another program answers there, not process 0") from error
    answer, *channel.unread = messages
    if "failed" in answer:
        raise InputError(str(answer["failed"]))
    channel.connection.settimeout(None)
    return {0: channel}, {0: str(answer.get("name"))}


def _connect(place: Place, wait: float) -> socket.socket:
    """Connects to process 0. Repeats failed attempts for up to `wait` seconds, then raises InputError."""
    problem = ""
    waits = _Waits(wait, f"{place}: waiting for", lambda: f"process 0 at {place.coordinator}: {problem}")
    while True:
        try:
            return socket.create_connection(place.address, timeout=max(1.0, min(10.0, waits.left)))
        except OSError as error:
            problem = error.strerror or str(error)
        if waits.over:
            raise InputError(
                f"process 0 of {place.processes} does not answer at {place.coordinator}; waited {wait:g} s: {problem}; "
                "start it there, or wait longer with --wait"
            )
        waits.say()
        time.sleep(RETRY)


class _Waits:
    """Time limit for connecting the processes. Until then, prints lines about missing processes to standard error at
    growing intervals.
    """

    def __init__(self, wait: float, what: str, whom: Callable[[], str]):
        self._began, self._wait, self._what, self._whom, self._next = time.monotonic(), wait, what, whom, PATIENCE

    @property
    def left(self) -> float:
        """Number of seconds until the time limit."""
        return self._began + self._wait - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time limit is reached."""
        return self.left <= 0

    @property
    def next(self) -> float:
        """Number of seconds to wait: until the next line about missing processes is due, or until the time limit if
        that is earlier. Reading the property prints a line if one is due now.
        """
        self.say()
        return max(0.01, min(self.left, self._next - (self._wait - self.left)))

    def say(self) -> None:
        """Prints a line that names the missing processes, if one is due."""
        waited = self._wait - self.left
        if waited >= self._next:
            self._next *= 3
            print(f"{self._what} {self._whom()} ({waited:.0f} s of {self._wait:g} s)", file=sys.stderr, flush=True)
