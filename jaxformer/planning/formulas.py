"""Estimates the memory and the time of a training step by formulas, for the candidates of a planning search."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.parallel import metadata, sharding
from jaxformer.planning.candidates import Candidate
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.topologies import DeviceLocation, Reach, Topology
from jaxformer.training.stages import check_experts, check_pipeline
from jaxformer.training.state import boxed_params, check_positions, create
from jaxformer.training.utilization import PEAK_FLOPS

RECOMPUTED_FRACTION = {"none": 0.0, "dots": 0.05, "full": 1 / 3}
"""Additional FLOPs that each rematerialisation policy spends on recomputation in the backward pass, as a fraction of
the model's FLOPs per step. The policy `dots` recomputes only the matrix products of attention.
"""
COMPUTE, GRADIENT = 2, 4
"""Number of bytes per element of activations and of the gradients of kernels (`COMPUTE`, bfloat16), and of parameters
and the gradients of embedding tables (`GRADIENT`, float32).
"""
PER_STAGE = (1, 2, 4, 8)
"""Numbers of pipeline micro-batches per stage that a search tries."""
REPEATS = (1, 2, 4)
"""Values of `mesh.pipeline_repeats` that a search tries."""
ENDS = 4
"""How often arrays of the size of a pipeline's output pass through each device, in addition to the passes from stage to
stage: the input and the gradient of the output are gathered, and the output and the gradient of the input are summed
and scattered. In compiled steps of GPT-2 with four stages, it is 3 or 4 times on TPU v5e, and 4 or 6 on H100.
"""


class Formulas:
    """Estimates the memory use and the step time of candidates by formulas, without compiling them.

    The estimates only determine which candidates are compiled, and in which order.
    """

    def __init__(self, experiment: Experiment, topology: Topology, model_flops: float):
        self._experiment, self._topology, self._flops = experiment, topology, model_flops
        self._boxes = jax.tree.leaves(boxed_params(experiment), is_leaf=metadata.is_boxed)
        self._trials: dict[sharding.Mesh, str | None] = {}
        self._counts: dict[Any, float] = {}
        self._reaches: dict[Any, Reach] = {}
        state = jax.eval_shape(lambda: create(experiment))
        kept = (state.average, state.reference, None if experiment.optimizer.offload else state.optimizer)
        self._kept = _bytes(kept) / _bytes(state.params)
        chips = [tuple(map(int, place)) for place in np.ndindex(topology.shape)]
        inside = [place for place in chips for _ in range(topology.chip.devices)]
        self._places: list[DeviceLocation] = [
            (unit, place) for unit in range(topology.slices_or_nodes) for place in inside
        ]

    def problem(self, candidate: Candidate) -> str | None:
        """Returns the reason why a candidate cannot run: the batch cannot be divided into equal parts for its mesh and
        micro-batches, or a mesh axis does not divide what it should split. Returns None if the candidate can run.
        """
        mesh, schedule, batch = candidate.mesh, candidate.schedule, self._experiment.data.batch
        parts = _batch_parts(mesh) // schedule.stages
        if batch % (parts * schedule.micro_batches * candidate.micro):
            stages = f" × {schedule.micro_batches} micro-batches of the pipeline" if schedule.stages > 1 else ""
            micro = f" × {candidate.micro} micro-batches" if candidate.micro > 1 else ""
            return f"the batch of {batch:,} does not divide into {parts} shares{stages}{micro}"
        mesh = dataclasses.replace(mesh, pipeline_microbatches=None)  # Only the batch depends on their number.
        if mesh not in self._trials:
            self._trials[mesh] = self._undivided(mesh) or self._refused(mesh)
        return self._trials[mesh]

    def _undivided(self, mesh: sharding.Mesh) -> str | None:
        """Returns a message if a mesh axis does not divide an axis of the parameters that it should shard."""
        rules = {**sharding.RULES, **dict(mesh.rules)}
        for box in self._boxes:
            for letter, size in zip(box.letters, box.value.shape, strict=True):
                name = sharding.AXES[letter]
                for axis in rules[name] if name in ("heads", "mlp", "embed") else ():
                    if size % (devices := max(1, getattr(mesh, axis))):
                        return f"{axis} {devices} does not divide the {name} of {size:,}"
        return None

    def _refused(self, mesh: sharding.Mesh) -> str | None:
        """Returns the message with which training refuses a mesh because of the model's experts, the length of rows or
        the pipeline.
        """
        whole = dataclasses.replace(self._experiment.optimizer, accumulate=1)
        trial = dataclasses.replace(self._experiment, mesh=mesh, optimizer=whole)
        abstract = AbstractMesh(tuple(_sizes(mesh)), sharding.AXIS_NAMES)
        try:
            with sharding.use_config(mesh):
                check_experts(trial, abstract)
                check_positions(trial, abstract)
                check_pipeline(trial, abstract)
        except InputError as error:
            return str(error)
        # A stack takes only some positions of its last block, but its experts are balanced over all.
        some = "masked_positions" in trial.data.task.row
        last = [stack.variant(stack.depth - 1).mlp for stack in trial.model.stacks().values()]
        if mesh.pipeline > 1 and some and any(getattr(mlp, "mean_names", ()) for mlp in last):
            return f"pipeline {mesh.pipeline} does not allow experts in the last block, which predicts some positions"
        return None

    def scheduled(self, candidate: Candidate) -> Candidate:
        """Returns a candidate with the pipeline schedule (numbers of micro-batches and repeats) for which its estimated
        time is shortest. Returns the same candidate if its mesh has no pipeline, or no schedule can run.
        """
        stages = candidate.mesh.pipeline
        if stages == 1:
            return candidate
        several = [
            dataclasses.replace(
                candidate,
                mesh=dataclasses.replace(
                    candidate.mesh, pipeline_microbatches=stages * number, pipeline_repeats=repeats
                ),
            )
            for number, repeats in itertools.product(PER_STAGE, REPEATS)
        ]
        able = [one for one in several if self.problem(one) is None]
        return min(able, key=lambda one: self.roofline(one).middle, default=candidate)

    def state_bytes(self, candidate: Candidate) -> float:
        """Returns the number of bytes of parameters and optimizer state per device. The part of the parameters is
        exact.
        """
        return self._elements(candidate.mesh, sharding.AXIS_NAMES) * GRADIENT * (1 + self._kept)

    def activation_bytes(self, candidate: Candidate) -> float:
        """Returns a lower bound for the number of bytes per device of the activations that are stored for the backward
        pass.

        With the rematerialisation policy `full`, only the input of each block is stored. With other policies, the
        outputs of the matrix products of attention and MLP are stored too. All stored activations are split over the
        mesh axes `sequence` and `tensor`. Stages of a pipeline store them also while they wait.
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
        return total * self._rows(candidate) * candidate.waiting / candidate.micro

    def roofline(self, candidate: Candidate) -> Roofline:
        """Returns the estimated times of the parts of a step (matrix products and communication). The time for reading
        and writing device memory is not estimated and set to 0.
        """
        chip, fast, slow = self._topology.chip, 0.0, 0.0
        for reach, inside, outside in self._networks(candidate):
            fast += inside / (chip.links * reach.share)
            slow += outside / chip.network
        operations = self._flops * (1 + RECOMPUTED_FRACTION[candidate.remat]) / self._topology.size * candidate.waiting
        return Roofline(operations / PEAK_FLOPS[chip.kind], 0.0, fast, slow)

    def bytes_sent(self, candidate: Candidate) -> tuple[float, float]:
        """Returns the number of bytes that each device sends in a step over the fast network (inside its TPU slice or
        GPU node), and over the slow network.
        """
        networks = list(self._networks(candidate))
        return sum(inside for _, inside, _ in networks), sum(outside for _, _, outside in networks)

    def _networks(self, candidate: Candidate) -> Iterator[tuple[Reach, float, float]]:
        """Yields for each mesh axis how the devices along it are connected, and the number of bytes that each device
        sends to them in a step, over the fast and over the slow network.
        """
        for axis, amount in self.sent(candidate).items():
            reach = self._reach(candidate.mesh, axis)
            inside = amount * (reach.within - 1) / reach.within
            yield reach, inside, amount * (reach.slices_or_nodes - 1) / reach.slices_or_nodes / reach.within

    def sent(self, candidate: Candidate) -> dict[str, float]:
        """Returns the number of bytes that pass through each device in a step along each mesh axis. If n devices
        communicate, a device sends (n - 1) / n of them.
        """
        mesh, micro = candidate.mesh, candidate.micro
        kernels, tables = self._kernels_and_tables(mesh, tuple(set(sharding.AXIS_NAMES) - {"fsdp", "sequence"}))
        # Kernels are gathered in the forward and in the backward pass, and their gradients are reduced. Each use of a
        # table gathers 4 bytes per element (a lookup once in float32, an output layer twice in bfloat16), and reduces a
        # gradient in float32. A pipeline gathers the parameters of a part of its blocks in each tick.
        schedule = candidate.schedule
        parameters = (3 * COMPUTE * kernels + 2 * GRADIENT * tables) * micro * schedule.ticks / schedule.repeats
        gradients, outside, dense = (self._gradients(candidate, without) for without in ("", "l", "e"))
        # Parameters that the devices along an axis have in common are also those whose gradients are summed over it.
        return {
            "fsdp": parameters,
            "sequence": parameters / mesh.fsdp + self._keys(candidate),
            "tensor": 2 * self._activations(candidate),
            "data": gradients,
            "slices": gradients,
            "expert": dense + self._dispatched(candidate) if mesh.expert > 1 else 0.0,
            "pipeline": outside + self._passed_on(candidate, gradients - outside) if mesh.pipeline > 1 else 0.0,
        }

    def _gradients(self, candidate: Candidate, without: str) -> float:
        """Returns the number of bytes that pass through each device if all gradients are summed over a mesh axis in one
        step. `without` is that of `_elements`.
        """
        kernels, tables = self._kernels_and_tables(candidate.mesh, sharding.AXIS_NAMES, without)
        return 2 * candidate.micro * (COMPUTE * kernels + GRADIENT * tables)

    def _kernels_and_tables(self, mesh: sharding.Mesh, axes: tuple[str, ...], without: str = "") -> tuple[float, float]:
        """Returns the number of elements per device of kernels and of embedding tables. A table with which an output
        layer is tied counts twice, because it is gathered for each use, and each use has its own gradient.

        The arguments are those of `_elements`.
        """
        kernels = self._elements(mesh, axes, without + "v")
        uses = 2 if getattr(self._experiment.model, "tie_embeddings", True) else 1
        return kernels, uses * (self._elements(mesh, axes, without) - kernels)

    def _elements(self, mesh: sharding.Mesh, axes: tuple[str, ...], without: str = "") -> float:
        """Returns the number of parameter elements per device if the parameters are sharded only over the mesh axes in
        `axes`. Parameters that have an axis with one of the letters `without` are left out.
        """
        sizes = {name: getattr(mesh, name) if name in axes else 1 for name in sharding.AXIS_NAMES}
        key = (*sizes.values(), without)
        if key in self._counts:
            return self._counts[key]
        abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        total = 0.0
        with sharding.use_config(mesh):
            for box in self._boxes:
                if set(without) & set(box.letters):
                    continue
                spec = sharding.partition_spec(box.letters, box.value.shape, abstract)
                total += box.value.size / math.prod(sizes[name] for name in sharding.names(spec))
        self._counts[key] = total
        return total

    def _activations(self, candidate: Candidate) -> float:
        """Returns the number of bytes of activations per device that are summed over the mesh axis `tensor` in one
        step.
        """
        # Two sums per pass: after attention and after the MLP.
        width = sum(stack.width * stack.depth for stack in self._experiment.model.stacks().values())
        passed = 2 * _passes(candidate) * COMPUTE * self._rows(candidate) * self._in_row * width
        return passed * candidate.waiting / candidate.mesh.sequence

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

    def _dispatched(self, candidate: Candidate) -> float:
        """Returns the number of bytes of the tokens that pass through each device on their way to experts and back, in
        one step. Without a capacity, each device receives the tokens of all devices along the mesh axis `expert`; with
        one, slots are exchanged.
        """
        mesh, total = candidate.mesh, 0.0
        for stack in self._experiment.model.stacks().values():
            for number in range(stack.depth):
                mlp = stack.variant(number).mlp
                if hasattr(mlp, "experts"):
                    copies = mesh.expert if mlp.capacity is None else mlp.capacity * mlp.top_k
                    total += 2 * copies * stack.width
        passed = _passes(candidate) * COMPUTE * self._rows(candidate) * self._in_row * total
        return passed * candidate.waiting / mesh.sequence

    def _passed_on(self, candidate: Candidate, gradients: float) -> float:
        """Returns the number of bytes that pass through each stage of a pipeline in one step. With several repeats,
        stages also exchange their parameters.

        Args:
          candidate: candidate whose mesh has a pipeline.
          gradients: twice the number of bytes of the gradients of a stage's parameters, in all micro-batches.
        """
        schedule, width = candidate.schedule, sum(stack.width for stack in self._experiment.model.stacks().values())
        rows = self._rows(candidate) * schedule.stages / schedule.micro_batches
        vectors = COMPUTE * rows * self._in_row * width / candidate.mesh.tensor
        # In each tick a stage sends all of its output, and in the backward pass the gradient.
        times = 2 * schedule.ticks * schedule.stages / (schedule.stages - 1) + ENDS * schedule.micro_batches
        return vectors * times + (gradients if schedule.repeats > 1 else 0.0)

    @property
    def _in_row(self) -> int:
        """Number of tokens per row, or of patches per image."""
        return max(self._experiment.data.task.unit[1], getattr(self._experiment.model, "patches", 0))

    def _rows(self, candidate: Candidate) -> float:
        """Returns the number of batch rows per device."""
        return self._experiment.data.batch / _batch_parts(candidate.mesh)

    def _reach(self, mesh: sharding.Mesh, axis: str) -> Reach:
        """Returns how the devices of a group that communicate along a mesh axis are connected: those that have index 0
        on all other axes.

        Assumes that the mesh lists the devices in the order of their indices.
        """
        key = (*_sizes(mesh), axis)
        if key not in self._reaches:
            numbers = np.arange(self._topology.size).reshape(_sizes(mesh))
            place = sharding.AXIS_NAMES.index(axis)
            first = np.moveaxis(numbers, place, -1).reshape(-1, numbers.shape[place])[0]
            self._reaches[key] = self._topology.reach([self._places[number] for number in first])
        return self._reaches[key]


def _sizes(mesh: sharding.Mesh) -> tuple[int, ...]:
    """Returns the sizes of all mesh axes, outermost first."""
    return tuple(getattr(mesh, name) for name in sharding.AXIS_NAMES)


def _passes(candidate: Candidate) -> int:
    """Returns how often a step computes each block: forward, backward and, if it is rematerialised, again."""
    return 3 if candidate.remat == "full" else 2


def _batch_parts(mesh: sharding.Mesh) -> int:
    """Returns the number of parts into which a mesh splits a batch."""
    return math.prod(getattr(mesh, name) for name in sharding.RULES["batch"])


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
