"""A Slurm of one node, with a configuration, keys and ports of its own: nothing outside of its folder is touched."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "scontrol")
SYSTEM = "/usr/sbin:/sbin"

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def install() -> None:
    """Installs Slurm by apt-get where that is possible; skips the test where it is not."""
    os.environ["PATH"] = f"{os.environ['PATH']}:{SYSTEM}"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        pytest.skip(f"no {missing[0]}, and no root and apt-get to install slurm-wlm and munge with")
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "slurm-wlm", "munge"]):
        done = subprocess.run(command, timeout=300, check=False, **quiet)
    if done.returncode or any(shutil.which(name) is None for name in PROGRAMS):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"apt-get cannot install slurm-wlm and munge: {reason}")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Runs Slurm while the block is entered, for commands that this process starts; skips the test where it cannot."""
    install()
    if os.geteuid():
        pytest.skip("slurmd starts jobs only as root")
    for part in ("state", "spool"):
        (folder / part).mkdir(parents=True)
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [one.getsockname()[1] for one in free]
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            ports=ports,
            user=getpass.getuser(),
            folder=folder,
            processors=os.cpu_count(),
        )
    )
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--force", *(f"--{name}={folder}/munge.{end}" for name, end in names.items())]
    os.environ["SLURM_CONF"] = str(config)
    try:
        for command in (munged, ["slurmctld", "-f", config], ["slurmd", "-f", config]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                pytest.skip(f"{command[0]} does not start here: {done.stderr.strip()}")
        wait_for(lambda: "idle" in asked("sinfo", "--noheader", "--format=%T"), "an idle node")
        try:
            yield
        finally:  # A step that is left would outlive the daemons.
            subprocess.run(["scancel", "--full", "--user", getpass.getuser()], capture_output=True, check=False)
            wait_for(lambda: not asked("squeue", "--noheader"), "the end of all jobs")
    finally:
        del os.environ["SLURM_CONF"]
        for name in ("slurmd", "slurmctld", "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def asked(*command: str) -> str:
    """The output of a command of Slurm, which has to end well."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def wait_for(happened, what: str, seconds: float = 900) -> None:
    """Returns when something has happened; fails if it does not."""
    ending = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ending, f"waited {seconds} s for {what}"
        time.sleep(0.1)
