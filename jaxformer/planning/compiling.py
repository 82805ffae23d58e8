"""Compiles programs for TPUs and GPUs that are not attached to this machine."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.extend.mlir import ir

from jaxformer.errors import InputError
from jaxformer.parallel.host_memory import HOST
from jaxformer.planning.hlo import Program
from jaxformer.planning.targets import target_config
from jaxformer.planning.topologies import DeviceLocation, Topology

COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
"""Maps each platform to the Python packages that contain its compiler. One of these packages must be installed."""
VARIABLES = {
    # Otherwise libtpu asks a metadata server for the TPU type, and allows only one process at a time.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Otherwise JAX does not register the GPU compiler on a machine without a GPU.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # Hides log messages about slow compilation. Errors are still raised as exceptions.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Environment variables, with their values, that `prepare` sets unless they already have a value."""
# Without a GPU there is no autotuning, and Triton does not find tile sizes for some matrix products.
OPTIONS: dict[str, dict[str, str | bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
"""Maps each platform to the compiler options that planning uses for it."""
KIND, ALIASED = "mhlo.memory_kind", "tf.aliasing_output"
"""Names of MLIR attributes: the memory of an argument or a result, and the result that reuses an argument's memory."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """Raised if the compiler reports that a program needs more memory than a device has.

    Args:
      needed: number of bytes that the program needs; 0 if the compiler does not report it.
      available: number of bytes that are available.
    """

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiled program, with its memory use and the time that compilation took."""

    program: Program
    peak: float
    """Peak memory use in bytes per device, including the arguments of the program."""
    seconds: float
    """Compile time in seconds."""


def prepare() -> None:
    """Sets environment variables that allow compilers to run on a machine without the target devices (see `VARIABLES`).

    Must be called before JAX initialises its devices.
    """
    for variable, value in VARIABLES.items():
        os.environ.setdefault(variable, value)


def check_compiler(topology: Topology) -> None:
    """Raises InputError if no compiler for the topology is installed."""
    packages = COMPILERS[topology.chip.platform]
    if not any(map(importlib.util.find_spec, packages)):
        raise InputError(
            f"--topology {topology.name}: {packages[0]}, which has the compiler, is not installed: "
            "pip install 'jaxformer[plan]'"
        )


def devices(topology: Topology) -> Sequence[Any]:
    """Returns JAX device objects that describe the devices of a topology. Programs can be compiled for them, but cannot
    run on them.

    Raises:
      InputError: If the compiler is not installed, or does not support the topology.
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
    """Returns the arguments of `jax.experimental.topologies.get_topology_desc` that describe the topology to the
    compiler of its platform.
    """
    chip, shape = topology.chip, "x".join(map(str, topology.shape))
    if chip.platform == "gpu":
        target = target_config(chip.name)
        return {
            "topology_name": chip.name,
            "topology": f"1x{topology.slices_or_nodes}x{shape}",
            "target_config": target,
        }
    options: dict[str, Any] = {"topology_name": f"{chip.name}:{shape}"}
    if topology.slices_or_nodes > 1:
        options["num_slices"] = topology.slices_or_nodes
    if topology.shape == (1, 1):
        options["chips_per_host_bounds"] = [1, 1, 1]
    if chip.name == "v4":  # As on Google Cloud, the two cores of a chip are one device.
        options["chip_config_name"] = "megacore"
    return options


def place(topology: Topology, device: Any) -> DeviceLocation:
    """Returns the location of a device in a topology: the index of its TPU slice or GPU node, and its coordinates
    within it.
    """
    if topology.chip.platform == "gpu":
        node, number = divmod(device.id, topology.shape[0])
        return node, (number,)
    return getattr(device, "slice_index", None) or 0, tuple(device.coords[: topology.chip.dimensions])


def compile_for(topology: Topology, lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program that was lowered for devices of a topology. Returns it with its memory use.

    Raises:
      DoesNotFit: If the compiler reports that the program needs more memory than a device has. Only the TPU compiler
        reports this.
    """
    began = time.monotonic()
    if topology.chip.platform == "gpu":
        place_in_host_memory(lowered)
    try:
        compiled = lowered.compile(OPTIONS[topology.chip.platform] or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(*memory_of(str(error), topology.chip.memory)) from error
    program = Program.parse(compiled.as_text() or "")
    return Compiled(program, device_peak(compiled.memory_analysis()), time.monotonic() - began)


def place_in_host_memory(lowered: jax.stages.Lowered) -> None:
    """Places the arguments of a program in host memory whose memory is reused for results in host memory.

    JAX's descriptions of GPUs do not list their memories, so that shardings of arguments lose the memory. Results keep
    it, because the program copies them there.
    """
    module: Any = lowered.compiler_ir("stablehlo")
    with module.context:
        main = next(one for one in module.body.operations if one.attributes["sym_name"].value == "main")
        on_host = [_attribute(result, KIND) == HOST for result in main.attributes["res_attrs"]]
        arguments = []
        for argument in main.attributes["arg_attrs"]:
            values = {one.name: one.attr for one in argument}
            reused = _attribute(argument, ALIASED)
            if reused is not None and on_host[reused]:
                values[KIND] = ir.StringAttr.get(HOST)
            arguments.append(ir.DictAttr.get(values))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(arguments)


def _attribute(attributes: Any, name: str) -> Any:
    return attributes[name].value if name in attributes else None


def device_peak(memory: Any) -> float:
    """Returns the peak memory use in bytes per device of a compiled program. `memory` is the result of
    `jax.stages.Compiled.memory_analysis`, whose own peak includes arrays in host memory.
    """
    on_host = memory.host_argument_size_in_bytes
    if not on_host + memory.host_temp_size_in_bytes:
        return memory.peak_memory_in_bytes
    allocated = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return min(memory.peak_memory_in_bytes - on_host, allocated - memory.alias_size_in_bytes)


def memory_of(message: str, capacity: float) -> tuple[float, float]:
    """Extracts two numbers of bytes, the needed and the available memory, from a compiler message such as "Used 20.4G
    of 15.75G hbm".

    If the message does not contain them, returns 0 and `capacity`.
    """
    found = [
        float(number) * UNITS[unit]
        for number, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT]?)\b(?: hbm|\)|,| of)", message)
    ]
    return (found[0], found[1]) if len(found) > 1 and found[0] > found[1] else (0.0, capacity)
