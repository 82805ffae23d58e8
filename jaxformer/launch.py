"""`jaxformer launch`: trains one run with several processes on this machine."""

import argparse
import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NoReturn

from jaxformer.ending import STOPPED
from jaxformer.errors import InputError
from jaxformer.parallel import cluster

ENDING = 30.0
"""Number of seconds to wait for the other processes after one process has failed. Processes that are still running are
then killed.
"""
DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
"""Matches the XLA flag that sets the number of simulated CPU devices."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"launch: {message}")


def launch(arguments: Sequence[str]) -> int:
    """Runs `jaxformer launch`: trains with several processes on this machine.

    Process 0 writes to the terminal. Of the other processes, only standard error is shown, and each line begins with
    the process number. On SIGTERM or Ctrl-C, all processes save a checkpoint and end with status 75. A second signal
    kills them.

    Args:
      arguments: `-n N`, followed by the arguments of `jaxformer train`.

    Returns:
      0 if all processes succeed. Otherwise the exit status of the first process that failed, or 128 plus the signal
      number if a signal ended it.

    Raises:
      InputError: If the number of processes is missing, or the number of devices is not divisible by it.
    """
    parser = _Parser(
        "jaxformer launch", usage="jaxformer launch -n N CONFIG.py [--field value ...]", allow_abbrev=False
    )
    parser.description = "Trains with N processes on this machine, on the CPU or on GPUs, which are divided evenly."
    parser.add_argument("-n", type=int, required=True, metavar="N", help="the number of processes")
    parser.epilog = "The other arguments are those of train: see jaxformer train --help."
    options, rest = parser.parse_known_args(arguments)
    if options.n < 1:
        raise InputError(f"launch: -n {options.n}: expected at least 1")
    if not rest:
        raise InputError("launch: expected a config file, such as configs/bert_quickstart.py")
    environments = [_environment(number, options.n) for number in range(options.n)]
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "jaxformer", "train", *rest]
    signals = _Signals()
    with signals.received():
        started = [
            _start(command, number, environment | {cluster.ADDRESS: address})
            for number, environment in enumerate(environments)
        ]
        return _supervise(started, signals)


def _environment(number: int, count: int) -> dict[str, str]:
    """Returns all environment variables for process `number` of `count`: those of this process, with the variables
    added that define the number of the process and the devices that it may use.

    Raises:
      InputError: If the devices cannot be divided equally among the processes.
    """
    place = {cluster.COUNT: str(count), cluster.NUMBER: str(number)}
    if cluster.has_tpu() and count > 1:
        raise InputError("launch: a single process uses all TPUs of a host; use jaxformer train")
    gpus = _gpus()
    if gpus:
        _check_division("GPUs", len(gpus), count)
        each = len(gpus) // count
        place["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * each : (number + 1) * each])
    flags = os.environ.get("XLA_FLAGS", "")
    simulated = DEVICES.findall(flags)
    if simulated:
        devices = int(simulated[-1])
        _check_division("simulated devices", devices, count)
        share = f"--xla_force_host_platform_device_count={devices // count}"
        place["XLA_FLAGS"] = DEVICES.sub(share, flags)
    return {**os.environ, **place}


def _gpus() -> list[str]:
    """Returns the ids of the GPUs that JAX would use, as in `CUDA_VISIBLE_DEVICES`, without initialising JAX. Empty if
    the CUDA plugin of JAX is not installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    found = importlib.util.find_spec("jax_plugins")
    plugins = (
        [name for folder in found.submodule_search_locations or () for name in os.listdir(folder)] if found else []
    )
    return cluster.visible_gpus() if any(name.startswith("xla_cuda") for name in plugins) else []


def _check_division(what: str, devices: int, count: int) -> None:
    if devices % count:
        ways = ", ".join(str(number) for number in range(1, devices + 1) if devices % number == 0)
        raise InputError(f"launch: -n {count} does not divide {devices} {what}; expected one of {ways}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(command: Sequence[str], number: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts process `number` of the run in its own session (process group), so that the terminal sends Ctrl-C only to
    the launcher, which forwards it once.
    """
    pipe = None if number == 0 else subprocess.PIPE
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=pipe and subprocess.DEVNULL,
        stderr=pipe,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    if process.stderr:
        threading.Thread(target=_prefix, args=(process.stderr, number), daemon=True).start()
    return process


def _end_with_parent() -> None:
    """Asks the Linux kernel to send SIGTERM to this process when its parent process ends. Runs in the child process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _prefix(lines: IO[str], number: int) -> None:
    """Copies the standard error of a training process to the terminal line by line, with the number of the process
    before each line.
    """
    for line in lines:
        print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)


class _Signals:
    """Counts the SIGTERM and Ctrl-C signals that this process has received."""

    def __init__(self):
        self.count = 0

    @contextlib.contextmanager
    def received(self) -> Iterator[None]:
        """Counts signals inside the `with` block, then restores the previous signal handlers."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, *_) -> None:
        self.count += 1


def _supervise(started: Sequence[subprocess.Popen[str]], signals: _Signals) -> int:
    """Waits until all training processes have ended, forwards signals to them, and ends the others if one fails.
    Returns the exit status of `launch`.
    """
    running, status, deadline, passed_on = dict(enumerate(started)), 0, None, 0
    while running:
        if signals.count > passed_on:
            passed_on = signals.count
            _send(running.values(), signal.SIGTERM if passed_on == 1 else signal.SIGKILL)
        if deadline and time.monotonic() > deadline:
            _send(running.values(), signal.SIGKILL)
        ended = {number: process.returncode for number, process in running.items() if process.poll() is not None}
        running = {number: process for number, process in running.items() if number not in ended}
        # If several processes end at the same time, reports one that was killed, because it is the likely cause.
        for number, code in sorted(ended.items(), key=lambda one: one[1] >= 0):
            if code == STOPPED and not status:
                status = code
            elif code and code != STOPPED and status in (0, STOPPED):
                status, deadline = code if code > 0 else 128 - code, time.monotonic() + ENDING
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
                print(f"jaxformer: launch: process {number} of {len(started)} {how}", file=sys.stderr, flush=True)
        time.sleep(0.05)
    return status


def _send(processes: Iterable[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
