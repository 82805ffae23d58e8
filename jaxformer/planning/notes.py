"""Warnings in a plan about inefficient sharding of parameters on TPUs."""

from collections.abc import Sequence

import jax

from jaxformer.config import Experiment
from jaxformer.parallel import metadata, parameter_shards, sharding
from jaxformer.planning.topologies import Topology
from jaxformer.planning.traffic import Collective
from jaxformer.training.state import boxed_params

LEAST = 0.01
"""Minimum fraction of the parameters whose shards are padded for which a warning is given. Norms and biases are a
smaller fraction, so there is no warning if only they are padded.
"""


def notes(
    experiment: Experiment, topology: Topology, mesh: jax.sharding.Mesh, collectives: Sequence[Collective]
) -> list[str]:
    """Returns warnings about parameter shards that TPUs pad, and about an inefficient way of gathering parameters. The
    list is empty for GPUs.

    Args:
      experiment: the experiment.
      topology: topology for which the training step was compiled.
      mesh: mesh of the step.
      collectives: collective operations of the step.
    """
    if topology.chip.platform != "tpu":
        return []
    padded = padded_share(experiment, mesh)
    found = []
    if padded > LEAST:
        found.append(
            f"mesh.fsdp={mesh.shape['fsdp']}: no dimension of {padded:.0%} of the parameters gives shards of a "
            f"multiple of {parameter_shards.TILE} rows, so they are padded in memory and when they are sent; a smaller "
            "mesh.fsdp gives larger shards"
        )
    return found + _whole_reductions(topology, mesh, collectives)


def padded_share(experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> float:
    """Returns the fraction of the parameters that TPUs pad in memory, because the length of their shards along the mesh
    axis `fsdp` is not a multiple of `parameter_shards.TILE`.
    """
    total = padded = 0
    with sharding.use_config(experiment.mesh):
        for box in jax.tree.leaves(boxed_params(experiment), is_leaf=metadata.is_boxed):
            shape = box.value.shape
            spec = parameter_shards.parameter_spec(box.letters, shape, mesh)
            total += box.value.size
            padded += 0 if parameter_shards.fills_tiles(spec, shape, mesh) else box.value.size
    return padded / total


def _whole_reductions(topology: Topology, mesh: jax.sharding.Mesh, collectives: Sequence[Collective]) -> list[str]:
    """Returns a list with one warning if the compiler gathers parameters by all-reduces, which send twice as many bytes
    as all-gathers. Otherwise, the list is empty.

    The TPU compiler does this if the mesh axis `fsdp` contains all devices of the program and there are at least 64.
    """
    fsdp, size = mesh.shape["fsdp"], topology.size

    def sent(kind: str) -> float:
        return sum(one.fast + one.slow for one in collectives if one.kind == kind and one.reach.size == size)

    if fsdp < size or not sent("all-reduce") > sent("all-gather") + sent("reduce-scatter"):
        return []
    return [
        f"mesh.fsdp={fsdp} has all devices, so the compiler gathers parameters and sums gradients by all-reduces of "
        f"whole arrays; --mesh.data 2 --mesh.fsdp {fsdp // 2} sends about half as much"
    ]
