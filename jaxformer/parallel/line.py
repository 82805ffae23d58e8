"""Connects process 0 of a run with every other process, so that all processes notice at once if one of them fails.

Before JAX is initialised, every process connects to the coordinator's address, identifies itself, and waits until all
processes have connected. The connections stay open when JAX's own service takes over the port. When a process ends for
any reason, the operating system closes its connection. Then process 0 notifies the others, and all processes end with a
one-line error. JAX by itself needs minutes to notice, and does not report the cause.

Messages are JSON objects, one per line.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import NoReturn

from jaxformer.parallel.cluster import Place
from jaxformer.parallel.meeting import GRACE, GREETING, Channel, Message, accept_processes, finish, join_process_0


class Line:
    """Open connections of one process of a run: in process 0, to every other process, and in any other process, to
    process 0.
    """

    def __init__(self, place: Place, channels: dict[int, Channel], names: dict[int, str]):
        self.place, self._channels, self._names = place, channels, names
        self._done: set[int] = set()
        self._ending = threading.Lock()
        os.register_at_fork(after_in_child=self._close_in_child)
        threading.Thread(target=self._watch, name="line", daemon=True).start()

    @classmethod
    def open(cls, place: Place, facts: dict[str, str], wait: float) -> "Line":
        """Connects this process with process 0 (or process 0 with all others), and waits until all processes have
        connected.

        Args:
          place: index of this process, number of processes and address of process 0.
          facts: names and values that must be the same in all processes, such as package versions.
          wait: number of seconds to wait for the other processes.

        Raises:
          InputError: If a process does not connect in time, two have the same index, or their facts differ.
        """
        own = {"process": place.process, "processes": place.processes, "name": _name(), "facts": facts}
        meet = accept_processes if place.process == 0 else join_process_0
        return cls(place, *meet(place, {GREETING: 1, **own}, wait))

    def done(self) -> None:
        """Notifies the connected processes that this process has succeeded, so that they do not treat the end of its
        connection as a failure.
        """
        self._done.add(self.place.process)
        self._send({"done": True})

    def fail(self, why: str, status: int, shown: bool = False) -> NoReturn:
        """Ends this process and all other processes of the run with an error. Does not return.

        Args:
          why: one-line reason that all processes report.
          status: exit status of all processes.
          shown: whether this process has already printed the reason.
        """
        if not self._ending.acquire(blocking=False):
            time.sleep(GRACE)  # Another thread is about to end this process.
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
        finish(self._channels.values())
        os._exit(status)  # A normal exit would wait for processes that have already ended.

    def _close_in_child(self) -> None:
        """Closes the connections in a forked child process. Otherwise they would stay open when the parent process
        ends.
        """
        for channel in self._channels.values():
            channel.connection.close()

    def _watch(self) -> None:
        """Handles messages from the connected processes, and detects when they end. Runs in a thread of its own."""
        with selectors.DefaultSelector() as waiting:
            for number, channel in self._channels.items():
                waiting.register(channel.connection, selectors.EVENT_READ, number)
                self._read(number, channel.unread)
            while waiting.get_map():
                for key, _ in waiting.select():
                    if not self._receive(key.data):
                        waiting.unregister(key.fileobj)

    def _receive(self, number: int) -> bool:
        """Receives and handles messages of the process with index `number`. Returns False if its connection has
        ended.
        """
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
        """Ends this process because another process, described in `why`, has failed. Process 0 also notifies all other
        processes.
        """
        if not self._ending.acquire(blocking=False):
            return
        report(self.place, why)
        if self.place.process == 0:
            self._send({"failed": why, "status": status, "passed_on": True})
        self._exit(status)


def report(place: Place, why: str) -> None:
    """Prints an error on one line to standard error, preceded by the index of this process."""
    restore = "\x1b[?25h" if sys.stderr.isatty() else ""  # A progress bar may have hidden the cursor.
    with contextlib.suppress(OSError, ValueError):  # Standard error may be closed.
        print(f"{restore}jaxformer: {place}: {why}", file=sys.stderr, flush=True)


def _name() -> str:
    return f"{socket.gethostname()}, pid {os.getpid()}"
