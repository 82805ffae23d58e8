"""Connects the processes of a run when it starts, and ends all of them if one fails.

with joined("train"):
    jf.fit(experiment, workdir)
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jaxformer
from jaxformer.errors import InputError, Stopped
from jaxformer.parallel import cluster
from jaxformer.parallel.cluster import Place
from jaxformer.parallel.line import SILENCE, Line

WAIT = 300.0
"""Default number of seconds that a process waits for the other processes of a run to connect."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu", "jax-cuda12-plugin")
"""Names of the Python packages whose versions must be the same in all processes of a run."""


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def take_flags(arguments: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Removes `--coordinator`, `--processes`, `--process`, `--wait` and `--silence` from a command line.

    Stores the values of the first three flags in environment variables (see `cluster.FLAGS`), which `joined` reads.

    Returns:
      The other arguments, and the time limits in seconds: the attributes `wait`, for the other processes to connect,
      and `silence`, after which a silent process counts as failed.

    Raises:
      InputError: If a flag has no value, or an invalid one.
    """
    parser = _Flags(add_help=False, allow_abbrev=False)
    for flag in cluster.FLAGS:
        parser.add_argument(f"--{flag}")
    for flag, default in (("wait", WAIT), ("silence", SILENCE)):
        parser.add_argument(f"--{flag}", type=float, default=default)
    options, rest = parser.parse_known_args(arguments)
    for flag in ("wait", "silence"):
        if not (seconds := getattr(options, flag)) > 0:
            raise InputError(f"--{flag} {seconds:g}: expected a number of seconds above 0")
    for flag, variable in cluster.FLAGS.items():
        value = getattr(options, flag)
        if value is not None:
            os.environ[variable] = value
    return rest, options


@contextlib.contextmanager
def joined(command: str, wait: float = WAIT, silence: float = SILENCE) -> Iterator[Place | None]:
    """Context manager that connects the processes of a run, if there are several, and initialises JAX for them.

    An error inside the `with` block is printed, and ends all processes with the same exit status. Standard output of
    all processes except process 0 is discarded. Must be entered before JAX uses a device for the first time. Does
    nothing if there is only one process.

    Args:
      command: name of the command, which must be the same in all processes.
      wait: number of seconds to wait for the other processes.
      silence: number of seconds after which a process that sends nothing counts as failed.

    Yields:
      The index of this process and the address of process 0 (a `Place`). None if there is only one process.

    Raises:
      InputError: If a process does not connect in time, or its versions or code differ from those of process 0.
    """
    place = cluster.find(wait=wait)
    if place is None:
        if command == "train" and (note := cluster.left_out()):
            warnings.warn(note, stacklevel=3)
        yield None
        return
    try:
        line = Line.open(place, facts(command), wait, silence)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    try:
        _initialize_jax(place, wait)
        with contextlib.ExitStack() as stack:
            if place.process:
                nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nothing))
            yield place
    except InputError as error:
        line.fail(str(error), 2)
    except Stopped as error:
        line.fail(str(error), error.status)
    except KeyboardInterrupt:
        line.fail("interrupted", 130)
    except BrokenPipeError:
        line.fail("the reader of standard output has gone", 1)
    except SystemExit as error:
        if error.code:
            line.fail(f"exit status {error.code}", error.code if isinstance(error.code, int) else 1)
        line.done()
        raise
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        line.fail(f"{type(error).__name__}: {error}".splitlines()[0], 1)
    line.done()


def _initialize_jax(place: Place, wait: float) -> None:
    import jax

    host, port = place.address
    local = f"[{host}]:{port}" if ":" in host else f"127.0.0.1:{port}"
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=max(60, int(wait)),
        coordinator_bind_address=local if place.is_local else None,
    )


def facts(command: str) -> dict[str, str]:
    """Returns the values that must be the same in all processes of a run, keyed by their names: the command, the
    versions of Python and of packages, and the version and a digest of jaxformer's code.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    python = ".".join(platform.python_version_tuple()[:2])
    return {"command": command, "Python": python, "jaxformer's code": _code(), **versions}


@functools.cache
def _code() -> str:
    """Returns the version of jaxformer, followed by a digest of its source files."""
    package, digest = Path(jaxformer.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return f"{jaxformer.__version__} ({digest.hexdigest()[:8]})"
