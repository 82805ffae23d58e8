"""Processes that get signals in a block of `Stop`: python stopping_process.py prints how each of them ended, as JSON.

All are forked from one process, so that JAX is imported once.
"""

import ctypes
import json
import os
import signal
import sys
import time

from jaxformer.errors import Stopped
from jaxformer.training.signals import Stop


def wait_in_a_library():
    """Locks a mutex twice: never returns, and is not interrupted by signals."""
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def wait_in_python():
    while True:
        time.sleep(0.01)


CASES = {
    "before the first step": (wait_in_python, {}, "before its first step", [signal.SIGTERM]),
    "before the first step, in a library": (wait_in_a_library, {}, "before its first step", [signal.SIGTERM]),
    "after the last step": (wait_in_python, {"status": 0}, "after its last step", [signal.SIGINT]),
    "not saved in time": (wait_in_a_library, {"grace": 0.3}, None, [signal.SIGTERM]),
    "twice, in a library": (wait_in_a_library, {}, None, [signal.SIGINT, signal.SIGINT]),
}
"""Maps the name of each case to what the process does, settings, `Stop.harmless`, and the signals that it gets."""


def child(name, ready, said):
    wait, settings, harmless, _ = CASES[name]
    os.dup2(said, 2)
    status = 99
    try:
        with Stop(settings.get("grace")) as stop:
            stop.harmless, stop.status = harmless, settings.get("status", stop.status)
            os.write(ready, b"1")
            wait()
    except Stopped as error:
        os.write(2, f"cleaned up: {error}\n".encode())
        status = error.status
    os._exit(status)


def ended(name):
    """Runs a case. Returns the exit status, the seconds from the first signal to the end, and what was printed."""
    (reading, ready), (output, said) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        child(name, ready, said)
    os.close(said)
    os.read(reading, 1)
    time.sleep(0.2)
    began = time.monotonic()
    for number in CASES[name][3]:
        os.kill(pid, number)
        time.sleep(0.1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, time.monotonic() - began, os.read(output, 1 << 16).decode()


if __name__ == "__main__":
    json.dump({name: ended(name) for name in CASES}, sys.stdout)
