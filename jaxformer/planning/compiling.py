"""Compiles programs for devices that are not attached."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jaxformer.errors import InputError
from jaxformer.planning.hlo import Program
from jaxformer.planning.targets import target_config
from jaxformer.planning.topologies import Place, Topology

COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
"""The packages, one of which has the compiler of a platform."""
VARIABLES = {
    # Without these libtpu asks the network which TPU this is, and one process at a time may use it.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Without this JAX does not register the compiler for GPUs where there is none.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # Compilers log that they are slow; their errors are exceptions too.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Environment variables that are set where they are not, before JAX looks for devices."""
# Without a GPU nothing can be tuned, and Triton finds no tiles for some products.
OPTIONS: dict[str, dict[str, str | bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
"""Options of the compiler of each platform."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """The compiler found that a program needs more memory than a device has.

    Args:
      needed: bytes that it needs, as far as the compiler says; 0 if it does not.
      available: bytes that there are.
    """

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that has been compiled."""

    program: Program
    peak: float
    """The most bytes of a device's memory that it uses at a time, its arguments among them."""
    seconds: float
    """How long the compiler took."""


def prepare() -> None:
    """Makes compilers for devices that are not attached available; to be called before JAX looks for devices."""
    for variable, value in VARIABLES.items():
        os.environ.setdefault(variable, value)


def check_compiler(topology: Topology) -> None:
    """Raises InputError where no compiler for the topology is installed."""
    packages = COMPILERS[topology.chip.platform]
    if not any(map(importlib.util.find_spec, packages)):
        raise InputError(
            f"--topology {topology.name}: {packages[0]}, which has the compiler, is not installed: "
            "pip install 'jaxformer[plan]'"
        )


def devices(topology: Topology) -> Sequence[Any]:
    """The devices of a topology, as JAX describes them; programs can be compiled for them, not run.

    Raises:
      InputError: the compiler is not installed, or does not know the topology.
    """
    check_compiler(topology)
    platform = {"gpu": "cuda", "tpu": "tpu"}[topology.chip.platform]
    try:
        described = topologies.get_topology_desc(platform=platform, **_description(topology))
    except NotImplementedError as error:
        raise InputError(
            f"--topology {topology.name}: JAX looked for devices before its compiler was there: set JAX_PLATFORMS=cpu"
        ) from error
    except (RuntimeError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"--topology {topology.name}: the compiler does not know it: {problem}") from error
    return described.devices


def _description(topology: Topology) -> dict[str, Any]:
    """The arguments by which a platform's compiler knows a topology."""
    chip, shape = topology.chip, "x".join(map(str, topology.shape))
    if chip.platform == "gpu":
        target = target_config(chip.name)
        return {"topology_name": chip.name, "topology": f"1x{topology.islands}x{shape}", "target_config": target}
    options: dict[str, Any] = {"topology_name": f"{chip.name}:{shape}"}
    if topology.islands > 1:
        options["num_slices"] = topology.islands
    if topology.shape == (1, 1):
        options["chips_per_host_bounds"] = [1, 1, 1]
    if chip.name == "v4":  # The two cores of a chip as one device, as on Google Cloud.
        options["chip_config_name"] = "megacore"
    return options


def place(topology: Topology, device: Any) -> Place:
    """Where a device is: its slice or node, and its coordinates there."""
    if topology.chip.platform == "gpu":
        island, number = divmod(device.id, topology.shape[0])
        return island, (number,)
    return getattr(device, "slice_index", None) or 0, tuple(device.coords[: topology.chip.dimensions])


def compile_for(topology: Topology, lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program that was lowered for devices of a topology.

    Raises:
      DoesNotFit: the compiler says that it needs more memory than a device has. That for GPUs never does.
    """
    began = time.monotonic()
    try:
        compiled = lowered.compile(OPTIONS[topology.chip.platform] or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(*memory_of(str(error), topology.chip.memory)) from error
    memory: Any = compiled.memory_analysis()
    return Compiled(Program.parse(compiled.as_text() or ""), memory.peak_memory_in_bytes, time.monotonic() - began)


def memory_of(message: str, capacity: float) -> tuple[float, float]:
    """The bytes needed and available of a compiler's message, such as "Used 20.4G of 15.75G hbm"."""
    found = [
        float(number) * UNITS[unit]
        for number, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT]?)\b(?: hbm|\)|,| of)", message)
    ]
    return (found[0], found[1]) if len(found) > 1 and found[0] > found[1] else (0.0, capacity)
