"""Lists the candidates that a planning search compares: combinations of a mesh, a rematerialisation policy and a number
of micro-batches.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from jaxformer.config import Experiment
from jaxformer.layers.pipeline import Schedule
from jaxformer.parallel import sharding
from jaxformer.planning.topologies import Topology
from jaxformer.training.state import TOKEN_ARRAYS

REMAT = ("none", "dots", "full")
"""Rematerialisation policies, in order of decreasing memory use."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
"""Numbers of micro-batches per step that a search tries."""
MAX_TENSOR = 16
"""Maximum size of the mesh axis `tensor` that a search tries. On GPUs, the size is also at most the number of GPUs per
node.
"""
MIN_POSITIONS = 1024
"""Minimum number of token positions per device in the meshes with an axis `sequence` that a search tries. Shorter rows
are better split otherwise, because attention communicates in every layer.
"""
ALWAYS = ("data", "fsdp", "tensor")
"""Mesh axes that the flags of a candidate always contain."""


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
        schedule, stages = self.schedule, ""
        if schedule.stages > 1:
            repeats = f", {schedule.repeats} repeats" if schedule.repeats > 1 else ""
            stages = f" (pipeline: {schedule.micro_batches} micro-batches{repeats})"
        return f"{sharding.mesh_text(axes)}{stages}, remat {self.remat}, {micro}"

    @property
    def schedule(self) -> Schedule:
        """Schedule of the pipeline. It has one stage if the mesh has no pipeline."""
        stages = max(1, self.mesh.pipeline)
        return Schedule(stages, self.mesh.pipeline_microbatches or stages, self.mesh.pipeline_repeats)

    @property
    def waiting(self) -> float:
        """Time of a step relative to that of a pipeline whose stages never wait: 1 without a pipeline."""
        schedule = self.schedule
        return schedule.ticks / (schedule.micro_batches * schedule.repeats)

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
        given, values = experiment.mesh, {f"mesh.{name}": getattr(self.mesh, name) for name in ALWAYS}
        for name in sharding.AXIS_NAMES:
            if name not in ALWAYS and (getattr(self.mesh, name) > 1 or getattr(given, name) != 1):
                values[f"mesh.{name}"] = getattr(self.mesh, name)
        for name, usual in (("pipeline_microbatches", None), ("pipeline_repeats", 1)):
            if getattr(self.mesh, name) != usual or getattr(given, name) != usual:
                values[f"mesh.{name}"] = getattr(self.mesh, name)
        for path in experiment.model.stacks():
            values[f"model.{path.replace('/', '.')}.remat"] = self.remat
        values["optimizer.accumulate"] = self.micro
        return " ".join(f"--{name} {value}" for name, value in values.items())

    def needs_at_least(self, other: "Candidate") -> bool:
        """Returns True if this candidate certainly needs at least as much memory as `other`, so that it does not fit in
        memory if `other` does not.

        This is the case if both have the same size of the mesh axes `tensor`, `sequence`, `expert` and `pipeline`, and
        `other` has at least the same size of the axis `fsdp`, at least as much recomputation and at least as many
        micro-batches, in the pipeline too.
        """
        same = all(
            getattr(self.mesh, name) == getattr(other.mesh, name)
            for name in ("tensor", "sequence", "expert", "pipeline", "pipeline_repeats")
        )
        return (
            same
            and self.mesh.fsdp <= other.mesh.fsdp
            and REMAT.index(self.remat) <= REMAT.index(other.remat)
            and self.micro <= other.micro
            and self.schedule.micro_batches <= other.schedule.micro_batches
        )


def candidates(experiment: Experiment, topology: Topology) -> Iterator[Candidate]:
    """Yields all candidates for running the experiment on a topology: each mesh of `meshes` with every
    rematerialisation policy and every number of micro-batches.
    """
    for mesh, remat, micro in itertools.product(meshes(experiment, topology), REMAT, MICRO_BATCHES):
        yield Candidate(mesh, remat, micro)


def meshes(experiment: Experiment, topology: Topology) -> Iterator[sharding.Mesh]:
    """Yields all meshes that a search considers for an experiment on a topology.

    The sizes of all axes but `data` and `slices` are powers of two, and `data` has the remaining devices. Axes that the
    experiment cannot use have size 1: `expert` without experts, `sequence` if rows are short (see `MIN_POSITIONS`).
    """
    tpu, stacks, row = topology.chip.platform == "tpu", experiment.model.stacks().values(), experiment.data.task.row
    slices = topology.slices_or_nodes if tpu else 1
    inside = topology.size // slices
    experts = [kind.mlp.experts for stack in stacks for kind in stack.kinds if hasattr(kind.mlp, "experts")]
    longest = max((row[name].capacity for name in TOKEN_ARRAYS if name in row), default=0)
    limits = {
        "fsdp": inside,
        "tensor": MAX_TENSOR if tpu else min(MAX_TENSOR, topology.chip.gpus_per_node),
        "sequence": longest // MIN_POSITIONS,
        "expert": min(experts, default=1),
        "pipeline": min((stack.depth for stack in stacks), default=1),
    }
    for several in itertools.product(*(powers(max(1, min(limit, inside))) for limit in limits.values())):
        sizes, used = dict(zip(limits, several, strict=True)), math.prod(several)
        if inside % used:
            continue
        yield sharding.Mesh(data=inside // used, slices=slices, rules=experiment.mesh.rules, **sizes)


def powers(limit: int) -> list[int]:
    """Returns the powers of two from 1 to `limit`, inclusive."""
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]
