"""Connections between process 0 of a run and each other process, to detect arrivals and failures.

Before JAX connects, every process connects to the coordinator's address, identifies itself, and waits until all have
arrived. The connections stay open while JAX's own service takes over the port. The kernel closes them when a process
ends for any reason. So process 0 notices at once and notifies the others, and all end with a one-line error. JAX's
heartbeats would need minutes, and abort without naming the cause.

Messages are JSON objects, one per line.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NoReturn

from jaxformer.errors import InputError
from jaxformer.parallel.cluster import Place

Message = dict[str, Any]
GREETING = "jaxformer"
"""Field that identifies a first message. Its value is the version of this protocol."""
LONGEST = 1 << 20
"""Maximum size of a message in bytes."""
PATIENCE = 10.0
"""Seconds of waiting before the first progress line. The time triples for each further line."""
RETRY = 0.2
"""Seconds between two attempts to connect."""
GRACE = 15.0
"""Additional seconds that a process waits for the final message of process 0 when its wait is over."""


class _Channel:
    """A connection that carries messages."""

    def __init__(self, connection: socket.socket):
        self.connection, self._received, self._lock = connection, b"", threading.Lock()
        self.unread: list[Message] = []
        """Messages that arrived together with an expected one."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that is lost closes nothing: 15 s of silence, and 3 unanswered questions 5 s apart.
        for option, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # The same for what is sent and never acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    def send(self, message: Message) -> None:
        """Sends a message. Does nothing if the other side is gone, which the reader notices."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """Waits for data, and returns the complete messages.

        Raises:
          EOFError: If the other side is gone.
          ValueError: If the other side does not use this protocol.
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
        if len(self._received) > LONGEST:
            raise ValueError("too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not an object")
        return messages


def _finish(channels: Collection[_Channel]) -> None:
    """Ends sending, and waits until the other sides have read everything and closed, for at most two seconds."""
    ending = time.monotonic() + 2
    for channel in channels:
        with contextlib.suppress(OSError):
            channel.connection.shutdown(socket.SHUT_WR)
    for channel in channels:
        with contextlib.suppress(OSError):
            channel.connection.settimeout(max(0.01, ending - time.monotonic()))
            while channel.connection.recv(1 << 16):
                pass


class Line:
    """The connections of one process: process 0 to all others, every other process to process 0."""

    def __init__(self, place: Place, channels: dict[int, _Channel], names: dict[int, str]):
        self.place, self._channels, self._names = place, channels, names
        self._done: set[int] = set()
        self._ending = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._watch, name="line", daemon=True).start()

    @classmethod
    def open(cls, place: Place, facts: dict[str, str], wait: float) -> "Line":
        """Connects to all other processes.

        Args:
          place: place of this process.
          facts: values that must be the same in all processes, by name.
          wait: number of seconds to wait for the others.

        Raises:
          InputError: If a process does not arrive, two have the same index, or their facts differ.
        """
        own = {"process": place.process, "processes": place.processes, "name": _name(), "facts": facts}
        meet = _gather if place.process == 0 else _attend
        return cls(place, *meet(place, {GREETING: 1, **own}, wait))

    def done(self) -> None:
        """Reports the successful end of this process, so that the end of its connection is not taken for a failure."""
        self._done.add(self.place.process)
        self._send({"done": True})

    def fail(self, why: str, status: int, shown: bool = False) -> NoReturn:
        """Ends this process and all others.

        Args:
          why: one-line reason, for all of them.
          status: exit status of all of them.
          shown: whether this process has already printed the reason.
        """
        if not self._ending.acquire(blocking=False):
            time.sleep(GRACE)  # The other thread of this process is about to end it.
        if not shown:
            report(self.place, why)
        self._send({"failed": why, "status": status})
        self._exit(status)

    def _send(self, message: Message) -> None:
        for channel in self._channels.values():
            channel.send(message)

    def _exit(self, status: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        _finish(self._channels.values())
        os._exit(status)  # The usual way waits for processes that have gone.

    def _forget(self) -> None:
        """Closes the connections in a child process, where an open one would hide the end of this process."""
        for channel in self._channels.values():
            channel.connection.close()

    def _watch(self) -> None:
        """Waits for messages and for the ends of the other processes."""
        with selectors.DefaultSelector() as waiting:
            for number, channel in self._channels.items():
                waiting.register(channel.connection, selectors.EVENT_READ, number)
                self._read(number, channel.unread)
            while waiting.get_map():
                for key, _ in waiting.select():
                    if not self._heard(key.data):
                        waiting.unregister(key.fileobj)

    def _heard(self, number: int) -> bool:
        """Reads the messages of a process. Returns False if it has ended successfully."""
        try:
            messages = self._channels[number].receive()
        except (EOFError, ValueError):
            if number in self._done:
                return False
            self._end(f"{self._called(number)} ended without a message: killed, out of memory, or its host is lost", 1)
            return False
        self._read(number, messages)
        return True

    def _read(self, number: int, messages: Iterable[Message]) -> None:
        for message in messages:
            if "failed" in message:
                why = str(message["failed"])
                if "passed_on" not in message:
                    why = f"{self._called(number)} failed: {why}"
                self._end(why, int(message.get("status", 1)))
            if "done" in message:
                self._done.add(number)

    def _called(self, number: int) -> str:
        return f"process {number} of {self.place.processes} ({self._names[number]})"

    def _end(self, why: str, status: int) -> None:
        """Ends this process because another one has ended. Process 0 notifies all others."""
        if not self._ending.acquire(blocking=False):
            return
        report(self.place, why)
        if self.place.process == 0:
            self._send({"failed": why, "status": status, "passed_on": True})
        self._exit(status)


def report(place: Place, why: str) -> None:
    """Prints an error with the index of this process."""
    restore = "\x1b[?25h" if sys.stderr.isatty() else ""  # A bar that is drawn no more has hidden the cursor.
    with contextlib.suppress(OSError, ValueError):  # It may have no reader any more.
        print(f"{restore}jaxformer: {place}: {why}", file=sys.stderr, flush=True)


def _name() -> str:
    return f"{socket.gethostname()}, pid {os.getpid()}"


def _gather(place: Place, own: Message, wait: float) -> tuple[dict[int, _Channel], dict[int, str]]:
    """Returns the channels to all other processes and their names, once all have connected. Runs in process 0."""
    met: dict[int, _Channel] = {}
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
        _finish(met.values())
        raise
    for channel in met.values():
        channel.send({"go": True, "name": own["name"]})
    return met, names


@contextlib.contextmanager
def _listening(place: Place) -> Iterator[socket.socket]:
    """Opens a socket that listens at the coordinator's address. When it is closed, JAX's service listens there."""
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
    place: Place, server: socket.socket, wait: float, met: dict[int, _Channel]
) -> Iterator[tuple[_Channel, Message]]:
    """Yields each process that connects, with its first message, until `met` has all of them.

    Raises:
      InputError: If the waiting time is over.
    """
    waits = _Waits(wait, f"{place}: waiting at {place.coordinator} for", lambda: _missing(place, met))
    strangers: dict[socket.socket, _Channel] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        while len(met) < place.processes - 1:
            if waits.over:
                raise InputError(
                    f"{_missing(place, met)} did not arrive; waited {wait:g} s at {place.coordinator}: look at their "
                    "errors, or wait longer with --wait"
                )
            for key, _ in waiting.select(waits.next):
                if key.fileobj is server:
                    connection, _ = server.accept()
                    strangers[connection] = _Channel(connection)
                    waiting.register(connection, selectors.EVENT_READ)
                    continue
                connection: Any = key.fileobj
                gone = [number for number, channel in met.items() if channel.connection is connection]
                if gone:
                    raise InputError(f"process {gone[0]} of {place.processes} ended while others were awaited")
                channel = strangers[connection]
                try:
                    messages = channel.receive()
                except (EOFError, ValueError):
                    messages = [{}]
                if messages and messages[0].get(GREETING) == 1:
                    greeting, *channel.unread = messages
                    yield channel, greeting
                elif messages:  # Something else on the network.
                    waiting.unregister(connection)
                    connection.close()


def _missing(place: Place, met: dict[int, _Channel]) -> str:
    """Returns the indices of the missing processes, at most ten of them."""
    missing = [number for number in range(1, place.processes) if number not in met]
    numbers = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    return f"process{'es' if len(missing) > 1 else ''} {numbers} of {place.processes}"


def _check_greeting(place: Place, greeting: Message, names: dict[int, str]) -> None:
    """Raises InputError if a process does not belong to this run."""
    number, count, name = greeting.get("process"), greeting.get("processes"), greeting.get("name")
    if count != place.processes:
        raise InputError(f"process {number} ({name}) expects {count} processes, process 0 {place.processes}")
    if not isinstance(number, int) or not 0 < number < place.processes:
        raise InputError(f"process {number} ({name}): expected a number below {place.processes}")
    if number in names:
        raise InputError(f"two processes are number {number} of {place.processes}: {names[number]} and {name}")


def _difference(own: Message, other: Message) -> str:
    """Describes how the facts of another process differ from those of process 0; empty if they are the same."""
    ours, others = own["facts"], other.get("facts")
    if not isinstance(others, dict):
        return f"process {other['process']} ({other.get('name')}) gives no facts"
    return differing(own["process"], ours, other["process"], others)


def differing(number: int, facts: dict[str, str], other: int, others: dict[str, str]) -> str:
    """Describes on one line up to three facts that differ between two processes; empty if all are the same."""
    names = [name for name in sorted(facts.keys() | others.keys()) if facts.get(name) != others.get(name)]
    if not names:
        return ""
    shown = "; ".join(f"{name} {others.get(name, 'none')}, not {facts.get(name, 'none')}" for name in names[:3])
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    return f"process {other} differs from process {number}: {shown}{more}"


def _attend(place: Place, own: Message, wait: float) -> tuple[dict[int, _Channel], dict[int, str]]:
    """Returns the channel to process 0, once all processes have connected. Runs in all other processes."""
    channel = _Channel(_connect(place, wait))
    channel.send(own)
    channel.connection.settimeout(wait + GRACE)
    try:
        messages: list[Message] = []
        while not messages:
            messages = channel.receive()
    except TimeoutError as error:
        raise InputError(f"process 0 of {place.processes} does not answer at {place.coordinator}") from error
    except EOFError as error:
        raise InputError(f"process 0 of {place.processes} ended while others were awaited") from error
    except ValueError as error:
        raise InputError(f"--coordinator {place.coordinator}: something else than process 0 answers there") from error
    answer, *channel.unread = messages
    if "failed" in answer:
        raise InputError(str(answer["failed"]))
    channel.connection.settimeout(None)
    return {0: channel}, {0: str(answer.get("name"))}


def _connect(place: Place, wait: float) -> socket.socket:
    """Connects to process 0. Raises InputError if the waiting time is over."""
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
    """A time limit that prints progress lines to standard error at growing intervals."""

    def __init__(self, wait: float, what: str, whom: Callable[[], str]):
        self._began, self._wait, self._what, self._whom, self._next = time.monotonic(), wait, what, whom, PATIENCE

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._began + self._wait - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0

    @property
    def next(self) -> float:
        """Prints a line if one is due, and returns the number of seconds until the next action."""
        self.say()
        return max(0.01, min(self.left, self._next - (self._wait - self.left)))

    def say(self) -> None:
        """Prints which processes are missing, if a line is due."""
        waited = self._wait - self.left
        if waited >= self._next:
            self._next *= 3
            print(f"{self._what} {self._whom()} ({waited:.0f} s of {self._wait:g} s)", file=sys.stderr, flush=True)
