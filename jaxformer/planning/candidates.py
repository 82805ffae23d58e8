"""Ways to run an experiment on a topology, and what formulas say of them before anything is compiled."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxformer.config import Experiment
from jaxformer.parallel import metadata, sharding
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.topologies import Place, Topology
from jaxformer.training.state import boxed_params, create
from jaxformer.training.utilization import PEAK_FLOPS

REMAT = ("none", "dots", "full")
"""The kinds of rematerialisation, from the most memory to the least."""
AGAIN = {"none": 0.0, "dots": 0.05, "full": 1 / 3}
"""The operations that each kind adds, as a share of the model's: with dots, the products of attention."""
MICRO = (1, 2, 4, 8, 16)
"""Micro-batches that are tried."""
TENSOR = 16
"""The most ways that matrices are split; of GPUs, those of a node."""
COMPUTE, GRADIENT = 2, 4
"""Bytes of an element in bfloat16 and float32."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run an experiment."""

    mesh: sharding.Mesh
    remat: str
    micro: int
    """Micro-batches."""

    @property
    def label(self) -> str:
        """The candidate in a few words."""
        axes = {name: getattr(self.mesh, name) for name in ("slices", "data", "fsdp", "tensor")}
        split = " × ".join(f"{name} {size}" for name, size in axes.items() if size > 1) or "data 1"
        return f"{split}, remat {self.remat}, {self.micro} micro-batch{'es' if self.micro > 1 else ''}"

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment, run in this way."""
        return dataclasses.replace(
            experiment,
            mesh=self.mesh,
            model=experiment.model.replace_stacks(remat=self.remat),
            optimizer=dataclasses.replace(experiment.optimizer, accumulate=self.micro),
        )

    def flags(self, experiment: Experiment) -> str:
        """The flags of `jaxformer train` that set it."""
        values = {f"mesh.{name}": getattr(self.mesh, name) for name in ("data", "fsdp", "tensor")}
        if self.mesh.slices > 1:
            values["mesh.slices"] = self.mesh.slices
        for path in experiment.model.stacks():
            values[f"model.{path.replace('/', '.')}.remat"] = self.remat
        values["optimizer.accumulate"] = self.micro
        return " ".join(f"--{name} {value}" for name, value in values.items())

    def needs_at_least(self, other: "Candidate") -> bool:
        """Whether it needs as much memory as the other one or more: nothing is split, or computed again, more."""
        return (
            self.mesh.tensor == other.mesh.tensor
            and self.mesh.fsdp <= other.mesh.fsdp
            and REMAT.index(self.remat) <= REMAT.index(other.remat)
            and self.micro <= other.micro
        )


def candidates(experiment: Experiment, topology: Topology) -> Iterator[Candidate]:
    """All ways that are tried: every mesh, by powers of two, each kind of rematerialisation, and micro-batches."""
    tpu = topology.chip.platform == "tpu"
    slices = topology.islands if tpu else 1
    # The axes of the experiment that are not searched stay as they are.
    others = math.prod(max(1, getattr(experiment.mesh, name)) for name in ("pipeline", "expert", "sequence"))
    inside = topology.size // (slices * others)
    tensor = [size for size in powers(inside) if size <= (TENSOR if tpu else min(TENSOR, topology.chip.island))]
    for ways in tensor:
        for fsdp in powers(inside // ways):
            if inside % (ways * fsdp):
                continue
            data = inside // (ways * fsdp)
            mesh = dataclasses.replace(experiment.mesh, slices=slices, data=data, fsdp=fsdp, tensor=ways)
            for remat in REMAT:
                for micro in MICRO:
                    yield Candidate(mesh, remat, micro)


def powers(limit: int) -> list[int]:
    """The powers of two up to a limit."""
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]


class Formulas:
    """Memory and time of candidates by the usual formulas, which need no compiler.

    They only decide which candidates are compiled, and in which order.
    """

    def __init__(self, experiment: Experiment, topology: Topology, model_flops: float):
        self._experiment, self._topology, self._flops = experiment, topology, model_flops
        self._boxes = jax.tree.leaves(boxed_params(experiment), is_leaf=metadata.is_boxed)
        state = jax.eval_shape(lambda: create(experiment))
        self._optimizer = _bytes((state.optimizer, state.average)) / _bytes(state.params)
        chips = [tuple(map(int, place)) for place in np.ndindex(topology.shape)]
        inside = [place for place in chips for _ in range(topology.chip.devices)]
        self._places: list[Place] = [(island, place) for island in range(topology.islands) for place in inside]

    def problem(self, candidate: Candidate) -> str | None:
        """Why a candidate cannot run, or would split nothing by one of its axes."""
        mesh, batch = candidate.mesh, self._experiment.data.batch
        ways = mesh.slices * mesh.data * mesh.fsdp
        if batch % (ways * candidate.micro):
            micro = f" × {candidate.micro} micro-batches" if candidate.micro > 1 else ""
            return f"the batch of {batch:,} does not divide into {ways} shares{micro}"
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
        """Bytes of the parameters and the optimizer's state of a device, exact for the former."""
        return self._elements(candidate.mesh, ("fsdp", "tensor")) * GRADIENT * (1 + self._optimizer)

    def activation_bytes(self, candidate: Candidate) -> float:
        """Bytes of a device that the activations kept for the backward pass take at least.

        With `full` the input of each block is kept; otherwise also what the products of attention and MLP return.
        """
        split, row = candidate.mesh.tensor, self._experiment.data.task.row
        tokens = min([row[name].capacity for name in ("tokens", "inputs") if name in row], default=0) or self._in_row
        total = 0.0
        for stack in self._experiment.model.stacks().values():
            kept = float(stack.width)
            if candidate.remat != "full":
                groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
                inner = (stack.heads + 2 * groups) * head_dim + stack.mlp.flops(stack.width) / (4 * stack.width)
                kept += stack.width + inner / split
            total += COMPUTE * stack.depth * tokens * kept
        return total * self._rows(candidate) / candidate.micro

    def roofline(self, candidate: Candidate) -> Roofline:
        """The time of a step; that of the device's memory is not estimated."""
        mesh, chip = candidate.mesh, self._topology.chip
        gathered = COMPUTE * self._elements(mesh, ("tensor",))
        kept = GRADIENT * self._elements(mesh, ("fsdp", "tensor"))
        # Gathered forward and backward, and the gradients reduced.
        sent = {"fsdp": 3 * gathered * candidate.micro, "data": 2 * kept * candidate.micro}
        sent["slices"] = sent["data"]
        sent["tensor"] = 2 * self._activations(candidate)
        fast = slow = 0.0
        for axis, amount in sent.items():
            reach = self._topology.reach(self._group(mesh, axis))
            fast += amount * (reach.within - 1) / reach.within / (chip.links * reach.share)
            slow += amount * (reach.islands - 1) / reach.islands / reach.within / chip.network
        operations = self._flops * (1 + AGAIN[candidate.remat]) / self._topology.size
        return Roofline(operations / PEAK_FLOPS[chip.kind], 0.0, fast, slow)

    def _elements(self, mesh: sharding.Mesh, axes: tuple[str, ...]) -> float:
        """Elements of the parameters that a device has if only these axes split them."""
        sizes = {name: getattr(mesh, name) if name in axes else 1 for name in sharding.AXIS_NAMES}
        abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        total = 0.0
        with sharding.overridden(mesh):
            for box in self._boxes:
                spec = sharding.partition_spec(box.letters, box.value.shape, abstract)
                parts = [name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry)]
                total += box.value.size / math.prod(sizes[name] for name in parts)
        return total

    def _activations(self, candidate: Candidate) -> float:
        """Bytes of the activations of a device that are summed over the axis `tensor` in a step."""
        layers = 6 if candidate.remat == "full" else 4  # Two for each pass of a block.
        stacks = self._experiment.model.stacks().values()
        width = sum(stack.width * stack.depth for stack in stacks)
        return layers * COMPUTE * self._rows(candidate) * self._in_row * width

    @property
    def _in_row(self) -> int:
        """Tokens of a row, or patches of an image."""
        return max(self._experiment.data.task.unit[1], getattr(self._experiment.model, "patches", 0))

    def _rows(self, candidate: Candidate) -> float:
        """Rows of a batch that a device has."""
        return self._experiment.data.batch / (candidate.mesh.slices * candidate.mesh.data * candidate.mesh.fsdp)

    def _group(self, mesh: sharding.Mesh, axis: str) -> list[Place]:
        """The places of the devices of one group along an axis, if devices are laid out in order."""
        sizes: Mapping[str, int] = mesh.sizes(self._topology.size)
        numbers = np.arange(self._topology.size).reshape(tuple(sizes.values()))
        first = np.moveaxis(numbers, list(sizes).index(axis), -1).reshape(-1, sizes[axis])[0]
        return [self._places[number] for number in first]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
