"""Lists the candidates that a planning search compares: combinations of a mesh, a rematerialisation policy and a number
of micro-batches.

`Formulas` estimates the memory and time of each combination before any of them is compiled.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxformer.config import Experiment
from jaxformer.layers.pipeline import Schedule
from jaxformer.parallel import metadata, sharding
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.topologies import DeviceLocation, Topology
from jaxformer.training.state import boxed_params, create
from jaxformer.training.utilization import PEAK_FLOPS

REMAT = ("none", "dots", "full")
"""Rematerialisation policies, in order of decreasing memory use."""
RECOMPUTED_FRACTION = {"none": 0.0, "dots": 0.05, "full": 1 / 3}
"""Additional FLOPs that each rematerialisation policy spends on recomputation in the backward pass, as a fraction of
the model's FLOPs per step. The policy `dots` recomputes only the matrix products of attention.
"""
MICRO_BATCHES = (1, 2, 4, 8, 16)
"""Numbers of micro-batches per step that a search tries."""
MAX_TENSOR = 16
"""Maximum size of the mesh axis `tensor` that a search tries. On GPUs, the size is also at most the number of GPUs per
node.
"""
FIXED = ("pipeline", "expert", "sequence")
"""Mesh axes whose sizes a search does not change."""
COMPUTE, GRADIENT = 2, 4
"""Number of bytes per element of activations (`COMPUTE`, bfloat16), and of parameters and gradients (`GRADIENT`,
float32).
"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run an experiment that a search considers: a mesh, a rematerialisation policy and a number of
    micro-batches.
    """

    mesh: sharding.Mesh
    remat: str
    micro: int
    """Number of micro-batches per step."""

    @property
    def label(self) -> str:
        """One-line description of the candidate for tables and messages: mesh, rematerialisation policy and number of
        micro-batches.
        """
        axes = {name: getattr(self.mesh, name) for name in sharding.AXIS_NAMES}
        micro = f"{self.micro} micro-batch{'es' if self.micro > 1 else ''}"
        return f"{sharding.mesh_text(axes)}, remat {self.remat}, {micro}"

    def applied(self, experiment: Experiment) -> Experiment:
        """Returns a copy of the experiment that uses the mesh, the rematerialisation policy and the number of
        micro-batches of this candidate.
        """
        return dataclasses.replace(
            experiment,
            mesh=self.mesh,
            model=experiment.model.replace_stacks(remat=self.remat),
            optimizer=dataclasses.replace(experiment.optimizer, accumulate=self.micro),
        )

    def flags(self, experiment: Experiment) -> str:
        """Returns the command line flags of `jaxformer train` that run the experiment with the mesh, policy and number
        of micro-batches of this candidate.
        """
        values = {f"mesh.{name}": getattr(self.mesh, name) for name in ("data", "fsdp", "tensor")}
        for name in ("slices", *FIXED):
            if getattr(self.mesh, name) > 1:
                values[f"mesh.{name}"] = getattr(self.mesh, name)
        for path in experiment.model.stacks():
            values[f"model.{path.replace('/', '.')}.remat"] = self.remat
        values["optimizer.accumulate"] = self.micro
        return " ".join(f"--{name} {value}" for name, value in values.items())

    def needs_at_least(self, other: "Candidate") -> bool:
        """Returns True if this candidate certainly needs at least as much memory as `other`, so that it does not fit in
        memory if `other` does not.

        This is the case if both have the same size of the mesh axis `tensor`, and `other` has at least the same size of
        the axis `fsdp`, at least as much recomputation and at least as many micro-batches.
        """
        return (
            self.mesh.tensor == other.mesh.tensor
            and self.mesh.fsdp <= other.mesh.fsdp
            and REMAT.index(self.remat) <= REMAT.index(other.remat)
            and self.micro <= other.micro
        )


def candidates(experiment: Experiment, topology: Topology) -> Iterator[Candidate]:
    """Yields all candidates for running the experiment on a topology: meshes in which the sizes of `fsdp` and `tensor`
    are powers of two and `data` has the remaining devices, each with every rematerialisation policy and every number of
    micro-batches.
    """
    tpu = topology.chip.platform == "tpu"
    slices = topology.slices_or_nodes if tpu else 1
    fixed = {name: max(1, getattr(experiment.mesh, name)) for name in FIXED}
    others = math.prod(fixed.values())
    inside = topology.size // (slices * others)
    max_tensor = MAX_TENSOR if tpu else min(MAX_TENSOR, topology.chip.gpus_per_node)
    for tensor in (size for size in powers(inside) if size <= max_tensor):
        for fsdp in powers(inside // tensor):
            if inside % (tensor * fsdp):
                continue
            data = inside // (tensor * fsdp)
            mesh = dataclasses.replace(experiment.mesh, slices=slices, data=data, fsdp=fsdp, tensor=tensor, **fixed)
            for remat in REMAT:
                for micro in MICRO_BATCHES:
                    yield Candidate(mesh, remat, micro)


def powers(limit: int) -> list[int]:
    """Returns the powers of two from 1 to `limit`, inclusive."""
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]


class Formulas:
    """Estimates the memory use and the step time of candidates by formulas, without compiling them.

    The estimates only determine which candidates are compiled, and in which order.
    """

    def __init__(self, experiment: Experiment, topology: Topology, model_flops: float):
        self._experiment, self._topology, self._flops = experiment, topology, model_flops
        self._boxes = jax.tree.leaves(boxed_params(experiment), is_leaf=metadata.is_boxed)
        state = jax.eval_shape(lambda: create(experiment))
        kept = state.average if experiment.optimizer.offload else (state.optimizer, state.average)
        self._optimizer = _bytes(kept) / _bytes(state.params)
        chips = [tuple(map(int, place)) for place in np.ndindex(topology.shape)]
        inside = [place for place in chips for _ in range(topology.chip.devices)]
        self._places: list[DeviceLocation] = [
            (unit, place) for unit in range(topology.slices_or_nodes) for place in inside
        ]

    def problem(self, candidate: Candidate) -> str | None:
        """Returns the reason why a candidate cannot run: the batch cannot be divided into equal parts for its mesh and
        micro-batches, or a mesh axis does not divide the array axis that it should shard. Returns None if the candidate
        can run.
        """
        mesh, batch = candidate.mesh, self._experiment.data.batch
        parts = _batch_parts(mesh)
        if batch % (parts * candidate.micro):
            micro = f" × {candidate.micro} micro-batches" if candidate.micro > 1 else ""
            return f"the batch of {batch:,} does not divide into {parts} shares{micro}"
        sizes = {"tensor": mesh.tensor, "fsdp": mesh.fsdp}
        rules = {**sharding.RULES, **dict(mesh.rules)}
        for box in self._boxes:
            for letter, size in zip(box.letters, box.value.shape, strict=True):
                name = sharding.AXES[letter]
                for axis in rules[name]:
                    if name in ("heads", "mlp", "embed") and size % sizes.get(axis, 1):
                        return f"{axis} {sizes[axis]} does not divide the {name} of {size:,}"
        return None

    def state_bytes(self, candidate: Candidate) -> float:
        """Returns the number of bytes of parameters and optimizer state per device. The part of the parameters is
        exact.
        """
        return self._elements(candidate.mesh, sharding.AXIS_NAMES) * GRADIENT * (1 + self._optimizer)

    def activation_bytes(self, candidate: Candidate) -> float:
        """Returns a lower bound for the number of bytes per device of the activations that are stored for the backward
        pass.

        With the rematerialisation policy `full`, only the input of each block is stored. With other policies, the
        outputs of the matrix products of attention and MLP are stored too. All stored activations are split over the
        mesh axes `sequence` and `tensor`.
        """
        split, row = candidate.mesh.tensor * candidate.mesh.sequence, self._experiment.data.task.row
        tokens = min([row[name].capacity for name in ("tokens", "inputs") if name in row], default=0) or self._in_row
        total = 0.0
        for stack in self._experiment.model.stacks().values():
            kept = float(stack.width)
            if candidate.remat != "full":
                groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
                inner = (stack.heads + 2 * groups) * head_dim + stack.mlp.flops(stack.width) / (4 * stack.width)
                kept += stack.width + inner
            total += COMPUTE * stack.depth * tokens * kept / split
        return total * self._rows(candidate) / candidate.micro

    def roofline(self, candidate: Candidate) -> Roofline:
        """Returns the estimated times of the parts of a step (matrix products and communication). The time for reading
        and writing device memory is not estimated and set to 0.
        """
        mesh, chip = candidate.mesh, self._topology.chip
        gathered = COMPUTE * self._elements(mesh, tuple(set(sharding.AXIS_NAMES) - {"fsdp", "sequence"}))
        kept = GRADIENT * self._elements(mesh, sharding.AXIS_NAMES)
        # Parameters are gathered in the forward and in the backward pass, and gradients are reduced.
        # A pipeline gathers the parameters of a part of its blocks in each tick.
        schedule = Schedule(
            max(1, mesh.pipeline), mesh.pipeline_microbatches or max(1, mesh.pipeline), mesh.pipeline_repeats
        )
        passes = schedule.ticks / schedule.repeats
        sent = {"fsdp": 3 * gathered * candidate.micro * passes, "data": 2 * kept * candidate.micro}
        sent["slices"] = sent["data"]
        sent["tensor"] = 2 * self._activations(candidate)
        sent["sequence"] = sent["fsdp"] / mesh.fsdp + self._keys(candidate)
        fast = slow = 0.0
        for axis, amount in sent.items():
            reach = self._topology.reach(self._group(mesh, axis))
            fast += amount * (reach.within - 1) / reach.within / (chip.links * reach.share)
            slow += amount * (reach.slices_or_nodes - 1) / reach.slices_or_nodes / reach.within / chip.network
        waiting = passes / schedule.micro_batches
        operations = self._flops * (1 + RECOMPUTED_FRACTION[candidate.remat]) / self._topology.size * waiting
        return Roofline(operations / PEAK_FLOPS[chip.kind], 0.0, fast, slow)

    def _elements(self, mesh: sharding.Mesh, axes: tuple[str, ...]) -> float:
        """Returns the number of parameter elements per device if the parameters are sharded only over the mesh axes in
        `axes`.
        """
        sizes = {name: getattr(mesh, name) if name in axes else 1 for name in sharding.AXIS_NAMES}
        abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        total = 0.0
        with sharding.use_config(mesh):
            for box in self._boxes:
                spec = sharding.partition_spec(box.letters, box.value.shape, abstract)
                total += box.value.size / math.prod(sizes[name] for name in sharding.names(spec))
        return total

    def _activations(self, candidate: Candidate) -> float:
        """Returns the number of bytes of activations per device that are summed over the mesh axis `tensor` in one
        step.
        """
        layers = 6 if candidate.remat == "full" else 4  # Two sums per pass: forward, backward and recomputation.
        stacks = self._experiment.model.stacks().values()
        width = sum(stack.width * stack.depth for stack in stacks)
        return layers * COMPUTE * self._rows(candidate) * self._in_row * width / candidate.mesh.sequence

    def _keys(self, candidate: Candidate) -> float:
        """Returns the number of bytes of keys, values and their gradients that each device sends along the mesh axis
        `sequence` in one step.
        """
        total = 0.0
        for stack in self._experiment.model.stacks().values():
            groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
            total += stack.depth * 2 * groups * head_dim / candidate.mesh.tensor
        # In the forward and in the backward pass, where gradients in float32 follow them.
        return (2 * COMPUTE + GRADIENT) * self._rows(candidate) * self._in_row * total

    @property
    def _in_row(self) -> int:
        """Number of tokens per row, or of patches per image."""
        return max(self._experiment.data.task.unit[1], getattr(self._experiment.model, "patches", 0))

    def _rows(self, candidate: Candidate) -> float:
        """Returns the number of batch rows per device."""
        return self._experiment.data.batch / _batch_parts(candidate.mesh)

    def _group(self, mesh: sharding.Mesh, axis: str) -> list[DeviceLocation]:
        """Returns the locations of a group of devices that communicate along a mesh axis: the devices that have index 0
        on all other axes.

        Assumes that the mesh lists the devices in the order of their indices.
        """
        sizes: Mapping[str, int] = mesh.sizes(self._topology.size)
        numbers = np.arange(self._topology.size).reshape(tuple(sizes.values()))
        first = np.moveaxis(numbers, list(sizes).index(axis), -1).reshape(-1, sizes[axis])[0]
        return [self._places[number] for number in first]


def _batch_parts(mesh: sharding.Mesh) -> int:
    """Returns the number of parts into which a mesh splits a batch."""
    return math.prod(getattr(mesh, name) for name in sharding.RULES["batch"])


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
