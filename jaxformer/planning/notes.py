"""Warnings about how the mesh of a plan splits parameters."""

from collections.abc import Sequence

import jax

from jaxformer.config import Experiment
from jaxformer.parallel import metadata, parameter_shards, sharding
from jaxformer.planning.topologies import Topology
from jaxformer.planning.traffic import Collective
from jaxformer.training.state import boxed_params

LEAST = 0.01
"""Minimum fraction of the parameters that must be padded for a warning. Norms and biases are a smaller fraction, so
padding only them gives no warning.
"""


def notes(
    experiment: Experiment, topology: Topology, mesh: jax.sharding.Mesh, collectives: Sequence[Collective]
) -> list[str]:
    """Returns warnings about parameter shards that TPUs pad, and about inefficient gathering of parameters. Empty for
    GPUs.

    Args:
      experiment: the experiment.
      topology: topology for which its step was compiled.
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
    """Returns the fraction of the parameters whose shards along the mesh axis `fsdp` are padded in TPU memory, because
    they do not fill tiles (groups of `parameter_shards.TILE` rows).
    """
    total = padded = 0
    with sharding.overridden(experiment.mesh):
        for box in jax.tree.leaves(boxed_params(experiment), is_leaf=metadata.is_boxed):
            shape = box.value.shape
            spec = parameter_shards.parameter_spec(box.letters, shape, mesh)
            total += box.value.size
            padded += 0 if parameter_shards.fills_tiles(spec, shape, mesh) else box.value.size
    return padded / total


def _whole_reductions(topology: Topology, mesh: jax.sharding.Mesh, collectives: Sequence[Collective]) -> list[str]:
    """Returns a warning if the compiler gathers parameters by all-reduces, which send twice as many bytes as
    all-gathers. Empty otherwise.

    The TPU compiler does this if the mesh axis `fsdp` contains all devices of the program, and these are at least 64.
    """
    ways, size = mesh.shape["fsdp"], topology.size

    def sent(kind: str) -> float:
        return sum(one.fast + one.slow for one in collectives if one.kind == kind and one.reach.size == size)

    if ways < size or not sent("all-reduce") > sent("all-gather") + sent("reduce-scatter"):
        return []
    return [
        f"mesh.fsdp={ways} has all devices, so the compiler gathers parameters and sums gradients by all-reduces of "
        f"whole arrays; --mesh.data 2 --mesh.fsdp {ways // 2} sends about half as much"
    ]
