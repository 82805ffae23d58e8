"""Plans an experiment: compiles its training step for hardware that is not attached, and computes memory use,
communication, time and cost.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxformer import config
from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.parallel import host_memory, sharding
from jaxformer.planning import compiling, operations, topologies, traffic
from jaxformer.planning.compiling import Compiled, DoesNotFit
from jaxformer.planning.notes import notes as sharding_notes
from jaxformer.planning.roofline import Roofline, roofline
from jaxformer.planning.topologies import Topology
from jaxformer.planning.traffic import Collective
from jaxformer.progress import display, phase
from jaxformer.training.loop import lower_step, trace_step
from jaxformer.training.stages import check_batch, check_experts, check_pipeline
from jaxformer.training.state import abstract_batch, abstract_state, check_axes, check_positions, count, split_frozen
from jaxformer.training.utilization import PEAK_FLOPS

PREALLOCATED = 0.75
"""Fraction of GPU memory that JAX allocates by default. The environment variable XLA_PYTHON_CLIENT_MEM_FRACTION changes
it.
"""
MOST = 0.92
"""Largest fraction of GPU memory that JAX should be set to allocate. CUDA, cuDNN and NCCL need the rest."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory use of a training step on one device, in bytes."""

    capacity: float
    """Size of the device memory in bytes."""
    usable: float
    """Number of bytes of the device memory that a program can use."""
    params: float
    """Number of bytes per device of the parameters."""
    optimizer: float
    """Number of bytes per device of the optimizer state, and of the moving average of the parameters if there is one.
    """
    batch: float
    """Number of bytes per device of a batch."""
    peak: float
    """Peak memory use in bytes. If the compiler rejects the program, the number of bytes that it needs according to the
    compiler, or 0 if the compiler does not report it.
    """
    refused: bool = False
    """Whether the compiler rejects the program because it needs too much memory."""
    host: float = 0.0
    """Number of bytes per device of the part of the optimizer state that is stored in host memory
    (`optimizer.offload`). Not included in `optimizer` and `peak`.
    """

    @property
    def fits(self) -> bool:
        """Whether the training step fits in the usable memory."""
        return not self.refused and self.peak <= self.usable

    @property
    def rest(self) -> float:
        """Number of bytes of activations, gradients and other temporary arrays, including padding: the peak minus
        parameters, optimizer state and batch.
        """
        return max(0.0, self.peak - self.params - self.optimizer - self.batch)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Predicted memory use, communication and time of a training step on a topology."""

    experiment: Experiment
    topology: Topology
    mesh: Mapping[str, int]
    """Size of each mesh axis, outermost first."""
    memory: Memory
    model_flops: float
    """FLOPs per step without recomputation, on all devices together: f · (2 + t), where f is the number for a forward
    pass (`Model.flops`) and t the fraction of parameters that are trained. The three terms are the forward pass, the
    gradients of activations, and the gradients of trained parameters.
    """
    flops: float
    """FLOPs per step of all matrix products that the program computes, including recomputation, on all devices
    together.
    """
    collectives: tuple[Collective, ...] = ()
    """Collective operations of a step. Empty if the compiler rejects the program."""
    memory_bytes: float = 0.0
    """Number of bytes per step that a device reads from and writes to its memory. 0 if the compiler rejects the
    program.
    """
    roofline: Roofline | None = None
    """Lower bounds for the times of the parts of a step: matrix products, memory and communication. None if the
    compiler rejects the program.
    """
    price: float | None = None
    """Price of one device per hour. None if it is not given."""
    compiled_in: float = 0.0
    """Compile time in seconds."""
    notes: tuple[str, ...] = ()
    """Warnings about inefficient sharding, or about loops whose number of iterations is unknown."""

    @property
    def remat(self) -> str:
        """Names of the rematerialisation policies of the model's Transformer stacks, separated by commas."""
        return ", ".join(dict.fromkeys(stack.remat for stack in self.experiment.model.stacks().values()))

    @property
    def units(self) -> tuple[str, int]:
        """Unit of training speed (`tokens` or `images`), and the number of these units per step. Tokens include
        padding.
        """
        name, in_row = self.experiment.data.task.unit
        return name, in_row * self.experiment.data.batch

    def utilization(self, seconds: float) -> float:
        """Returns the model FLOPs utilization (MFU) of a step that takes `seconds`, as a fraction of the peak FLOPs."""
        return self.model_flops / (seconds * self.topology.size * PEAK_FLOPS[self.topology.chip.kind])


def plan(
    experiment: Experiment | str | os.PathLike,
    topology: Topology | str,
    overrides: Mapping[str, Any] | None = None,
    price: float | None = None,
) -> Plan:
    """Plans a run: compiles its training step for hardware that is not attached, and computes memory use,
    communication, time and cost.

    Does not run the step or read data. The times are computed from the published speeds of the hardware, which real
    programs do not reach, so they are lower bounds.

    Args:
      experiment: experiment, or the path of a config file (see `load`).
      topology: name of a topology, such as `v5p:4x4x4`, `2xv5e:16x16` or `h100:64`.
      overrides: maps dotted paths of fields of the experiment, such as `mesh.fsdp`, to values that replace theirs.
      price: price of one device per hour.

    Raises:
      InputError: If the topology does not exist, the mesh of the experiment does not use all its devices, a mesh axis
        is larger than the array axis that it shards, the batch is not divisible by the mesh, or the compiler is not
        installed.
    """
    compiling.prepare()
    if not isinstance(experiment, Experiment):
        experiment = config.load(experiment)
    experiment = config.override(experiment, overrides or {})
    topology = topologies.parse(topology) if isinstance(topology, str) else topology
    check(experiment, topology)
    compiling.check_compiler(topology)
    with display(stderr=True):
        return compiled_plan(experiment, topology, price)


def check(experiment: Experiment, topology: Topology) -> AbstractMesh:
    """Checks that an experiment can run on a topology, without compiling it.

    Returns:
      The mesh of the experiment on this topology, as a JAX mesh without devices.

    Raises:
      InputError: If the mesh or the batch does not fit the topology, or the objective does not fit the model and the
        task.
    """
    check_vocabulary(experiment)
    sizes = experiment.mesh.sizes(topology.size)
    used = int(np.prod(list(sizes.values())))
    if used != topology.size:
        raise InputError(
            f"mesh {sharding.mesh_text(sizes)} has {used} of the {topology.size} devices of {topology.name}: expected "
            "all of them; -1 for one of its axes takes the rest"
        )
    slices = topology.slices_or_nodes
    if topology.chip.platform == "tpu" and sizes["slices"] not in (1, slices):
        raise InputError(f"mesh.slices={sizes['slices']}: {topology.name} has {slices} slice(s)")
    if topology.chip.platform == "tpu" and sizes["slices"] != slices:
        raise InputError(f"mesh.slices=1: {topology.name} has {slices} slices; expected --mesh.slices {slices}")
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with sharding.use_config(experiment.mesh):
        check_batch(experiment, mesh)
        check_experts(experiment, mesh)
        check_axes(experiment, mesh)
        check_positions(experiment, mesh)
        check_pipeline(experiment, mesh)
    experiment.objective.check(experiment.model, experiment.data.task.row)
    return mesh


def check_vocabulary(experiment: Experiment) -> None:
    """Raises InputError if the model takes its vocabulary size from a tokenizer that has not been trained yet, so that
    the size is unknown.
    """
    if missing := config.unset_vocabulary_fields(experiment):
        raise InputError(
            f"{missing[0]}: it depends on a tokenizer that has not been trained; expected --{missing[0]} SIZE"
        )


def compiled_plan(experiment: Experiment, topology: Topology, price: float | None = None) -> Plan:
    """Compiles the training step of an experiment, and returns the plan. The experiment must have passed `check`. If
    the compiler rejects the step because it does not fit in memory, the plan has no communication and no times.
    """
    devices = compiling.devices(topology)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    with phase("tracing the step"):
        flops = operations.count(trace_step(experiment, mesh))
        lowered = lower_step(experiment, mesh)
    state = state_memory(experiment, topology, mesh)
    base = Plan(experiment, topology, dict(mesh.shape), state, model_flops(experiment, mesh), flops, price=price)
    try:
        with phase(f"compiling for {topology.name}"):
            compiled = compiling.compile_for(topology, lowered)
    except DoesNotFit as error:
        memory = dataclasses.replace(state, peak=error.needed, usable=error.available, refused=True)
        return dataclasses.replace(base, memory=memory)
    return _with_program(base, compiled, mesh)


def _with_program(base: Plan, compiled: Compiled, mesh: jax.sharding.Mesh) -> Plan:
    topology, program = base.topology, compiled.program
    places = [compiling.place(topology, device) for device in mesh.devices.flat]
    collectives = traffic.collectives(program, topology, places)
    moved = traffic.memory_bytes(program)
    notes = sharding_notes(base.experiment, topology, mesh, collectives)
    if base.memory.host:
        notes.append(
            "each step copies the optimizer state from host memory and back, which is not part of the times: "
            f"{base.memory.host / 1e9:.2f} GB a device each way"
        )
    if loops := program.unknown_loops():
        notes.append(f"{loops} loop(s) of unknown length are counted once")
    return dataclasses.replace(
        base,
        memory=dataclasses.replace(base.memory, peak=compiled.peak),
        collectives=tuple(collectives),
        memory_bytes=moved,
        roofline=roofline(topology.chip, base.flops / topology.size, moved, collectives),
        compiled_in=compiled.seconds,
        notes=tuple(notes),
    )


def state_memory(experiment: Experiment, topology: Topology, mesh: jax.sharding.Mesh) -> Memory:
    """Computes the memory use of the training state and a batch on one device. Its field `peak` is 0, because the peak
    is known only after compilation.
    """
    state, chip = abstract_state(experiment, mesh), topology.chip
    usable = chip.memory * (MOST if chip.platform == "gpu" else 1.0)
    params = device_bytes((state.params, state.reference))
    batch = device_bytes(abstract_batch(experiment, mesh))
    # Shardings do not say it for GPUs that are not attached (see `compiling.place_in_host_memory`).
    host = device_bytes(host_memory.offloaded(state.optimizer)) if experiment.optimizer.offload else 0.0
    optimizer = device_bytes((state.optimizer, state.average)) - host
    return Memory(chip.memory, usable, params, optimizer, batch, peak=0.0, host=host)


def device_bytes(tree: Any) -> float:
    """Returns the number of bytes that the arrays of a tree occupy on each device. The arrays may be abstract."""
    return sum(
        float(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def model_flops(experiment: Experiment, mesh: jax.sharding.Mesh) -> float:
    """Returns the FLOPs per step without recomputation (see `Plan.model_flops`). Only matrix products count, and not
    the optimizer.
    """
    batch, specs = abstract_batch(experiment, mesh), experiment.model.inputs()
    sizes: dict[str, int] = {}
    for name, array in experiment.objective.inputs(batch).items():
        if name in specs:
            sizes |= dict(zip(specs[name].axes, array.shape, strict=True))
    params = abstract_state(experiment, mesh).params
    trained, _ = split_frozen(experiment, params)
    share = count(trained) / count(params)
    return (2 + share) * experiment.model.flops(sizes)
