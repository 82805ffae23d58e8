"""Chooses how parameters are sharded over the device mesh. Applies the rules in `sharding`, but changes the dimension
that is split if shards would otherwise not fill the tiles (8 rows) in which TPUs store arrays.
"""

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.parallel.metadata import is_boxed
from jaxformer.parallel.sharding import AXES, names, partition_spec, parts, replicated, rules

TILE = 8
"""Number of rows per tile. TPUs store arrays in tiles, and pad shards whose number of rows is not a multiple of this
number, both in memory and when they are sent. The number of columns does not matter, because the compiler uses another
dimension of the parameter as columns.
"""
STORAGE = "fsdp"
"""Mesh axis that only splits the storage of parameters. Parameters are gathered along it before they are used, so any
of their dimensions may be split over it.
"""


def parameter_spec(
    letters: str, shape: Sequence[int], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
    """Returns the partition spec of a parameter: the one from `partition_spec`, changed if its shards do not fill tiles
    of TPU memory (`TILE` rows).

    The mesh axis `fsdp` splits one dimension of the parameter. If the length of the shards along it is not a multiple
    of `TILE`, another dimension is split over `fsdp`, such that the length is a multiple. If there is no such
    dimension, the spec does not change. The spec of expert kernels never changes, because the dispatch of tokens to
    experts depends on it.

    Args:
      letters: one letter of `AXES` per dimension.
      shape: shape of the parameter.
      mesh: a mesh with the axes of `Mesh`.
    """
    spec = partition_spec(letters, shape, mesh)
    if "e" in letters or STORAGE not in spec or fills_tiles(spec, shape, mesh):
        return spec
    before, given = spec.index(STORAGE), rules()
    for index, letter in enumerate(letters):
        if index == before or letter == "l" or not given[AXES[letter]]:
            continue
        entries = list(spec)
        entries[before], others = None, names((spec[index],))
        entries[index] = (STORAGE, *others) if others else STORAGE
        moved = PartitionSpec(*entries)
        if shape[index] % parts(moved[index], mesh) == 0 and fills_tiles(moved, shape, mesh):
            return moved
    return spec


def fills_tiles(spec: PartitionSpec, shape: Sequence[int], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> bool:
    """Returns whether shards of a parameter fill tiles of TPU memory: whether their length along the dimension that is
    split over the mesh axis `fsdp` is a multiple of `TILE`. True if no dimension is split over `fsdp`.
    """
    split = next((index for index, entry in enumerate(spec) if STORAGE in names((entry,))), None)
    return split is None or shape[split] // parts(spec[split], mesh) % TILE == 0


def state_shardings(abstract_state, mesh: jax.sharding.Mesh):
    """Returns a tree with the `NamedSharding` of each array of an abstract training state. `Boxed` arrays (parameters
    with named axes) are sharded by their axes, and all others are replicated.
    """

    def sharding(leaf):
        if is_boxed(leaf):
            return NamedSharding(mesh, parameter_spec(leaf.letters, leaf.value.shape, mesh))
        return replicated(mesh)

    return jax.tree.map(sharding, abstract_state, is_leaf=is_boxed)
