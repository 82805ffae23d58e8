"""Connects process 0 of a run with every other process, so that all processes notice at once if one of them fails.

Before JAX is initialised, every process connects to the coordinator's address, identifies itself, and waits until all
processes have connected. The connections stay open when JAX's own service takes over the port. When a process ends for
any reason, the operating system closes its connection. Then process 0 notifies the others, and all processes end with a
one-line error. JAX by itself needs minutes to notice, and does not report the cause.

A process that is stopped, or whose machine is lost, does not close its connection. So each process also sends a short
message every few seconds, and one that has been silent for too long counts as failed.

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

from jaxformer import ending
from jaxformer.parallel.cluster import Place
from jaxformer.parallel.meeting import GRACE, GREETING, Channel, Message, accept_processes, finish, join_process_0

SILENCE = 25.0
"""Default number of seconds after which a process that sends nothing counts as failed."""
ALIVE = 0.2
"""Fraction of the longest permitted silence after which a process sends a message, to show that it is alive."""


class Line:
    """Open connections of one process of a run: in process 0, to every other process, and in any other process, to
    process 0.
    """

    def __init__(self, place: Place, channels: dict[int, Channel], names: dict[int, str], silence: float = SILENCE):
        self.place, self._channels, self._names, self._silence = place, channels, names, silence
        self._done: set[int] = set()
        self._ending = threading.Lock()
        self._heard = dict.fromkeys(channels, time.monotonic())
        os.register_at_fork(after_in_child=self._close_in_child)
        ending.announce_with(self.fail)
        for name, target in (("line", self._watch), ("alive", self._show_alive)):
            threading.Thread(target=target, name=name, daemon=True).start()

    @classmethod
    def open(cls, place: Place, facts: dict[str, str], wait: float, silence: float = SILENCE) -> "Line":
        """Connects this process with process 0 (or process 0 with all others), and waits until all processes have
        connected.

        Args:
          place: index of this process, number of processes and address of process 0.
          facts: names and values that must be the same in all processes, such as package versions.
          wait: number of seconds to wait for the other processes.
          silence: number of seconds after which a process that sends nothing counts as failed.

        Raises:
          InputError: If a process does not connect in time, two have the same index, or their facts differ.
        """
        own = {"process": place.process, "processes": place.processes, "name": _name(), "facts": facts}
        meet = accept_processes if place.process == 0 else join_process_0
        channels, names = meet(place, {GREETING: 1, **own}, wait)
        return cls(place, channels, names, silence)

    def done(self) -> None:
        """Notifies the connected processes that this process has succeeded, so that they do not treat the end of its
        connection as a failure.
        """
        self._done.add(self.place.process)
        ending.announce_with(None)
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
            last = time.monotonic()
            while waiting.get_map():
                for key, _ in waiting.select(self._silence * ALIVE):
                    if not self._receive(key.data):
                        waiting.unregister(key.fileobj)
                now = time.monotonic()
                if now - last > 2 * self._silence * ALIVE:  # This process itself was stopped: others may have spoken.
                    self._heard = dict.fromkeys(self._channels, now)
                last = now
                self._check_silence(now)

    def _check_silence(self, now: float) -> None:
        """Ends this process if another one has been silent for too long."""
        for number, heard in self._heard.items():
            if number not in self._done and now - heard > self._silence:
                why = f"has sent nothing for {now - heard:.0f} s: stopped, or its host or network is lost"
                self._end(f"{self._called(number)} {why}", 1)

    def _show_alive(self) -> None:
        """Sends a message every few seconds, until this process is done. Runs in a thread of its own."""
        while self.place.process not in self._done:
            self._send({"alive": True})
            time.sleep(self._silence * ALIVE)

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
        self._heard[number] = time.monotonic()
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
