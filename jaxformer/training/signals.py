"""Stops a training at a signal, such as Ctrl-C, and determines the step at which all processes stop."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stop:
    """Context manager that records SIGTERM and Ctrl-C instead of ending the process. A second Ctrl-C interrupts at
    once.

    Cloud services send SIGTERM before they take a machine away. If there are several processes, jax.distributed handles
    SIGTERM, and all processes agree on the step at which to stop. Ctrl-C then sends SIGTERM to this process, so that
    jax.distributed handles it too.
    """

    def __init__(self):
        self.signal: str | None = None
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            handled = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
            self._before = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self) -> bool:
        """Returns whether a signal has requested to stop. Always False if there are several processes, which use `at`
        to stop at the same step.
        """
        return self.signal is not None and jax.process_count() == 1

    def at(self, step: int) -> bool:
        """Returns whether to stop after this step. The answer is the same in every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or "SIGTERM"
            return True
        return self.requested()
