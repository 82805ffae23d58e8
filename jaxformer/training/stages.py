"""Checks that the batch, the pipeline stages and the experts of an experiment can be divided as its mesh requires."""

import math

import jax

from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.layers.pipeline import Schedule
from jaxformer.parallel import sharding


def check_batch(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError if the batch size is not divisible by the number of parts into which the mesh and the
    micro-batches split a batch.
    """
    batch, parts = experiment.data.batch, experiment.optimizer.accumulate
    num_parts = sharding.num_parts(mesh, "batch")
    if batch % (num_parts * parts):
        used = [name for name in sharding.rules()["batch"] if mesh.shape[name] > 1]
        axes = " × ".join(f"mesh.{name}" for name in used or ["data"])
        shares = f"{num_parts} shares ({axes})" + (f" × {parts} micro-batches" if parts > 1 else "")
        nearest = max(1, round(batch / (num_parts * parts))) * num_parts * parts
        raise InputError(f"data.batch={batch} does not divide into {shares}; {nearest} would")


def check_pipeline(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError if the blocks of the model cannot be divided evenly into pipeline stages, or the batch into
    micro-batches of the pipeline, or if pipeline settings are given for a mesh without a pipeline.
    """
    schedule = Schedule.of(mesh, experiment.mesh)
    stages, micro_batches = schedule.stages, schedule.micro_batches
    if stages == 1:
        for field, usual in (("pipeline_microbatches", None), ("pipeline_repeats", 1)):
            value = getattr(experiment.mesh, field)
            if value != usual:
                raise InputError(f"mesh.{field}={value}: mesh.pipeline is 1; expected {usual}")
        return
    if micro_batches % stages:
        multiple = math.ceil(micro_batches / stages) * stages
        raise InputError(
            f"mesh.pipeline_microbatches={micro_batches} is not a multiple of mesh.pipeline={stages}; "
            f"{multiple} would be"
        )
    _check_rows(experiment, mesh, micro_batches)
    of_parts = f"mesh.pipeline={stages}"
    if schedule.repeats > 1:
        of_parts += f" × mesh.pipeline_repeats={schedule.repeats}"
    for path, stack in experiment.model.stacks().items():
        each = schedule.parts * len(stack.kinds)
        if stack.depth % each:
            whole = f" of whole periods of {len(stack.kinds)} blocks" if len(stack.kinds) > 1 else ""
            nearest = max(1, round(stack.depth / each)) * each
            raise InputError(
                f"model.{path.replace('/', '.')}.depth={stack.depth} does not divide into {schedule.parts} parts"
                f"{whole} ({of_parts}); {nearest} would"
            )


def _check_rows(experiment: Experiment, mesh, micro_batches: int) -> None:
    batch, accumulate = experiment.data.batch, experiment.optimizer.accumulate
    axes = [name for name in sharding.RULES["batch"] if name != "pipeline" and mesh.shape[name] > 1]
    unit = math.prod(mesh.shape[name] for name in axes) * micro_batches * accumulate
    if batch % unit:
        parts = [f"{micro_batches} micro-batches of the pipeline"]
        if axes:
            parts.insert(0, " × ".join(f"mesh.{name}={mesh.shape[name]}" for name in axes))
        if accumulate > 1:
            parts.append(f"optimizer.accumulate={accumulate}")
        nearest = max(1, round(batch / unit)) * unit
        raise InputError(f"data.batch={batch} does not divide into {' × '.join(parts)}; {nearest} would")


def check_experts(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raises InputError if the size of the mesh axis `expert` does not divide the number of experts of the model, or is
    above 1 although the model has no experts.
    """
    size = mesh.shape["expert"]
    kinds = [kind for stack in experiment.model.stacks().values() for kind in stack.kinds]
    numbers = sorted({kind.mlp.experts for kind in kinds if hasattr(kind.mlp, "experts")})
    if size > 1 and not numbers:
        raise InputError(f"mesh.expert={size}: the model has no experts (ExpertMlp); expected 1")
    for number in numbers:
        if number % size:
            raise InputError(f"mesh.expert={size} does not divide mlp.experts={number}; {math.gcd(number, size)} would")
