"""Plans an experiment: compiles its step for hardware that is not attached, and derives memory, traffic and time."""

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
from jaxformer.parallel import sharding
from jaxformer.planning import compiling, operations, topologies, traffic
from jaxformer.planning.compiling import Compiled, DoesNotFit
from jaxformer.planning.roofline import Roofline, roofline
from jaxformer.planning.topologies import Topology
from jaxformer.planning.traffic import Collective
from jaxformer.progress import display, phase
from jaxformer.training.loop import check_batch, lower_step, trace_step
from jaxformer.training.state import abstract_batch, abstract_state, check_axes, trained_and_held
from jaxformer.training.utilization import PEAK_FLOPS

PREALLOCATED = 0.75
"""The share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
MOST = 0.92
"""The share that can be asked for: the rest is CUDA's own, cuDNN's and NCCL's."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory."""

    capacity: float
    """The size of the memory."""
    usable: float
    """The part of it that a program can use."""
    params: float
    """Parameters."""
    optimizer: float
    """The optimizer's state, and the moving average of the parameters where there is one."""
    batch: float
    """The rows of a batch."""
    peak: float
    """The most that is in use at a time; where the compiler refuses the program, what it says that it needs, or 0."""
    refused: bool = False
    """Whether the compiler refuses the program for its memory."""

    @property
    def fits(self) -> bool:
        """Whether the step runs."""
        return not self.refused and self.peak <= self.usable

    @property
    def rest(self) -> float:
        """Activations, gradients and other temporaries, and the padding of arrays."""
        return max(0.0, self.peak - self.params - self.optimizer - self.batch)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of an experiment's step on a topology: memory, communication and time."""

    experiment: Experiment
    topology: Topology
    mesh: Mapping[str, int]
    """The size of each axis of the mesh, outermost first."""
    memory: Memory
    model_flops: float
    """Operations of a step that the model calls for: `Model.flops` forward, and as many for each of the gradients of
    activations and of parameters that train."""
    flops: float
    """Operations of a step's matrix products as traced, with what is computed again."""
    collectives: tuple[Collective, ...] = ()
    """The collectives of a step; none where the compiler refuses the program."""
    memory_bytes: float = 0.0
    """Bytes that a device reads from its memory and writes to it in a step."""
    roofline: Roofline | None = None
    """None where the compiler refuses the program."""
    price: float | None = None
    """The price of one device for an hour."""
    compiled_in: float = 0.0
    """Seconds that the compiler took."""
    notes: tuple[str, ...] = ()
    """Remarks on the figures."""

    @property
    def remat(self) -> str:
        """The rematerialisation of the stacks."""
        return ", ".join(dict.fromkeys(stack.remat for stack in self.experiment.model.stacks().values()))

    @property
    def units(self) -> tuple[str, int]:
        """The unit of speed, and how many a step has: tokens, with padding, or images."""
        name, in_row = self.experiment.data.task.unit
        return name, in_row * self.experiment.data.batch

    def utilization(self, seconds: float) -> float:
        """The share of the chips' published speed that a step uses which takes this time (MFU)."""
        return self.model_flops / (seconds * self.topology.size * PEAK_FLOPS[self.topology.chip.kind])


def plan(
    experiment: Experiment | str | os.PathLike,
    topology: Topology | str,
    overrides: Mapping[str, Any] | None = None,
    price: float | None = None,
) -> Plan:
    """Plans a run: compiles its step for hardware that is not attached, and derives memory, traffic, time and cost.

    Nothing runs, and no data is read. The times are a roofline: published speeds, which no program reaches.

    Args:
      experiment: what is trained, or a config file, as `load` takes it.
      topology: such as `v5p:4x4x4`, `2xv5e:16x16` or `h100:64`.
      overrides: fields of the experiment to replace, by dotted path.
      price: of one device for an hour.

    Raises:
      InputError: there is no such topology, the experiment's mesh does not fill it, an axis is larger than what it
        splits, the batch does not divide, or the compiler is not installed.
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
    """The experiment's mesh on a topology, without devices; needs no compiler.

    Raises:
      InputError: they do not fit each other.
    """
    check_vocabulary(experiment)
    sizes = experiment.mesh.sizes(topology.size)
    used = int(np.prod(list(sizes.values())))
    shown = " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "data 1"
    if used != topology.size:
        raise InputError(
            f"mesh {shown} has {used} of the {topology.size} devices of {topology.name}: expected all of them; "
            "-1 for one of its axes takes the rest"
        )
    if topology.chip.platform == "tpu" and sizes["slices"] not in (1, topology.islands):
        raise InputError(f"mesh.slices={sizes['slices']}: {topology.name} has {topology.islands} slice(s)")
    if topology.chip.platform == "tpu" and sizes["slices"] != topology.islands:
        raise InputError(
            f"mesh.slices=1: {topology.name} has {topology.islands} slices; expected --mesh.slices {topology.islands}"
        )
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with sharding.overridden(experiment.mesh):
        check_batch(experiment, mesh)
        check_axes(experiment, mesh)
    experiment.objective.check(experiment.model, experiment.data.task.row)
    return mesh


def check_vocabulary(experiment: Experiment) -> None:
    """Raises InputError where the experiment leaves the size of a vocabulary to its tokenizer."""
    if missing := config.open_vocabularies(experiment):
        raise InputError(f"{missing[0]}: only the tokenizer's training decides it; expected --{missing[0]} SIZE")


def compiled_plan(experiment: Experiment, topology: Topology, price: float | None = None) -> Plan:
    """The plan of an experiment that `check` accepts."""
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
    notes = []
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
    """The memory that the state and a batch take; the peak is not known yet."""
    state, chip = abstract_state(experiment, mesh), topology.chip
    usable = chip.memory * (MOST if chip.platform == "gpu" else 1.0)
    params = device_bytes(state.params)
    optimizer = device_bytes((state.optimizer, state.average))
    return Memory(chip.memory, usable, params, optimizer, device_bytes(abstract_batch(experiment, mesh)), peak=0.0)


def device_bytes(tree: Any) -> float:
    """Bytes that one device has of the arrays of a tree, which may be abstract."""
    return sum(
        float(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def model_flops(experiment: Experiment, mesh: jax.sharding.Mesh) -> float:
    """Operations of a step, by the model's own count of a forward pass; dropout and the optimizer are not counted."""
    batch, specs = abstract_batch(experiment, mesh), experiment.model.inputs()
    sizes: dict[str, int] = {}
    for name, array in experiment.objective.inputs(batch).items():
        if name in specs:
            sizes |= dict(zip(specs[name].axes, array.shape, strict=True))
    params = abstract_state(experiment, mesh).params
    trained, _ = trained_and_held(experiment, params)
    share = _count(trained) / _count(params)
    return (2 + share) * experiment.model.flops(sizes)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
