"""How parameters are split over the mesh: by the rules of `sharding`, but with shards that fill the tiles of TPUs."""

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.parallel.metadata import is_boxed
from jaxformer.parallel.sharding import AXES, names, partition_spec, parts, replicated, rules

TILE = 8
"""Number of rows per tile. TPUs store arrays in tiles, and pad shards whose number of rows is not a multiple of it, in
memory and in communication. Columns are not affected, because the compiler takes them from another dimension.
"""
STORAGE = "fsdp"
"""Mesh axis that only splits the storage of parameters. They are gathered along it before use, so it may split any of
their dimensions.
"""


def parameter_spec(
    letters: str, shape: Sequence[int], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
    """Returns the partition spec of a parameter. It is that of `partition_spec`, but with shards that fill tiles if
    possible.

    If the number of rows per shard along the dimension that `fsdp` splits is not a multiple of `TILE`, `fsdp` splits
    another dimension for which it is. If there is none, the spec does not change. Kernels of experts keep the spec of
    the rules, because dispatching tokens depends on it.

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
    """Returns whether the shards of a parameter along the dimension that `fsdp` splits consist of complete tiles. True
    if `fsdp` splits no dimension.
    """
    split = next((index for index, entry in enumerate(spec) if STORAGE in names((entry,))), None)
    return split is None or shape[split] // parts(spec[split], mesh) % TILE == 0


def state_shardings(abstract_state, mesh: jax.sharding.Mesh):
    """Returns the sharding of each array in a tree. Arrays that are `Boxed` are sharded by their axes, and others are
    replicated.
    """

    def sharding(leaf):
        if is_boxed(leaf):
            return NamedSharding(mesh, parameter_spec(leaf.letters, leaf.value.shape, mesh))
        return replicated(mesh)

    return jax.tree.map(sharding, abstract_state, is_leaf=is_boxed)
