"""Stops a training at a signal, such as Ctrl-C, and determines the step at which all processes stop."""

import contextlib
import ctypes
import signal
import socket
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxformer import ending
from jaxformer.ending import STOPPED
from jaxformer.errors import Stopped

PROMPT = 3.0
"""Number of seconds that the main thread has to end at a signal if nothing would be lost. Then the process is ended
from another thread, because the main thread may be inside a library that does not return for minutes, such as a
compiler.
"""
INTERRUPTED = 1.0
"""The same for a second Ctrl-C."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Context manager that handles SIGTERM and Ctrl-C. Cloud services send SIGTERM before they take a machine away.

    While nothing would be lost (before the first step, and after the last one is saved), a signal raises `Stopped` in
    the main thread. Otherwise it only requests to stop: `fit` saves, and then ends. A second Ctrl-C interrupts at once.

    Python runs signal handlers only between two instructions of the main thread. So a second thread, which is notified
    of each signal at once, ends the process if the main thread does not do so in time.

    If there are several processes, each signal is also passed to jax.distributed, by which all processes agree on the
    step at which to stop.
    """

    def __init__(self, grace: float | None = None):
        """Handles no signals yet.

        Args:
          grace: number of seconds from a signal to the end of this process. Then it ends even if it has not saved. None
            for no limit.
        """
        self.signal: str | None = None
        """Name of the signal that has requested to stop. None if there was none."""
        self.harmless: str | None = "before its first step"
        """The moment of the training, for messages, if nothing would be lost if it ended now. Otherwise None."""
        self.status = STOPPED
        """Exit status of a process that is stopped while nothing would be lost."""
        self._grace, self._handled, self._agreed = grace, False, False
        self._before: dict[int, Any] = {}
        self._timers: list[threading.Timer] = []
        self._stack = contextlib.ExitStack()
        self._of_jax: int | None = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() > 1:
            self._of_jax = _replaced_handler(signal.SIGTERM, None)
            self._stack.callback(_replaced_handler, signal.SIGTERM, self._of_jax)
        for number in SIGNALS:
            self._stack.callback(signal.signal, number, signal.signal(number, self._receive))
        reading, writing = map(self._stack.enter_context, socket.socketpair())
        writing.setblocking(False)
        watching = threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True)
        watching.start()
        self._stack.callback(watching.join)
        self._stack.callback(writing.shutdown, socket.SHUT_RDWR)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._stack.callback(signal.set_wakeup_fd, before)
        return self

    def __exit__(self, *_) -> None:
        for timer in self._timers:
            timer.cancel()
        self._stack.close()

    def requested(self) -> bool:
        """Returns whether this process has received a signal. Use `at` to stop all processes at the same step."""
        return self.signal is not None

    def agree(self) -> None:
        """Records that all processes have agreed to stop at the current step, because they have abandoned an evaluation
        together.
        """
        self._agreed = True

    def at(self, step: int) -> bool:
        """Returns whether to stop after this step. The answer is the same in every process."""
        if jax.process_count() > 1:
            if not self._agreed and not multihost_utils.reached_preemption_sync_point(step):
                return False
            self.signal = self.signal or "SIGTERM"
        return self.requested()

    def _receive(self, number: int, _) -> None:
        """Handles a signal in the main thread."""
        again, self._handled = self._handled, True
        self.signal = self.signal or signal.Signals(number).name
        if again:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
        elif self.harmless is not None:
            raise Stopped(self._message(), self.status)

    def _watch(self, reading: socket.socket) -> None:
        """Reads the number of each signal, which the interpreter writes at once. Runs in a thread of its own."""
        received = 0
        while content := reading.recv(1):
            if content[0] not in SIGNALS:
                continue
            received += 1
            if received == 1:
                self.signal = self.signal or signal.Signals(content[0]).name
                if self._of_jax:
                    ctypes.CFUNCTYPE(None, ctypes.c_int)(self._of_jax)(signal.SIGTERM)
                if self.harmless is not None:
                    self._after(PROMPT, self._end_harmlessly)
                elif self._grace is not None:
                    self._after(self._grace, self._end_unsaved)
            elif content[0] == signal.SIGINT:
                self._after(INTERRUPTED, lambda: ending.end("interrupted", 130))

    def _after(self, seconds: float, function: Any) -> None:
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _end_harmlessly(self) -> None:
        if self.harmless is not None:
            ending.end(self._message(), self.status)

    def _end_unsaved(self) -> None:
        self._end_harmlessly()
        ending.end(
            f"stopped by {self.signal}: not saved within checkpoint.grace={self._grace:g} seconds; run the same "
            "command to resume from the last checkpoint",
            STOPPED,
        )

    def _message(self) -> str:
        how = "run the same command to continue" if self.status else "the run is complete"
        return f"stopped by {self.signal} {self.harmless}: nothing is lost; {how}"


def _replaced_handler(number: int, handler: int | None) -> int | None:
    """Sets the handler of a signal in the C library, and returns the handler that was there, as addresses. None is the
    default handler. Python only knows the handlers that were set by Python.
    """
    replace = ctypes.CDLL(None).signal
    replace.restype, replace.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return replace(number, handler)
