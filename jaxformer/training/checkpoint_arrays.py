"""Reads the arrays of a checkpoint: at once, in groups that limit memory, or each when it is used."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxformer.errors import InputError
from jaxformer.training.damage import Damaged, unless_damaged

Tree = Any
AT_ONCE = 1 << 28
"""Maximum total size in bytes of arrays that are read at the same time. A larger array is read by itself.

The limit exists because reading an array temporarily needs three copies of it in memory.
"""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a checkpoint on disk. Each call of `np.asarray` on it reads the array from disk."""

    shape: tuple[int, ...]
    """Shape of the array."""
    dtype: np.dtype
    """Dtype of the array."""
    sharding: jax.sharding.Sharding | None
    """Sharding with which `loaded` places the array on devices. If None, it is placed on the default device."""
    read: Callable[[], np.ndarray]
    """Function that reads the array from disk."""

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.read().astype(dtype or self.dtype, copy=False)


def loaded(tree: Tree) -> Tree:
    """Reads every `StoredArray` of a tree, and places it on devices with its sharding."""

    def load(leaf):
        return jax.device_put(np.asarray(leaf), leaf.sharding) if isinstance(leaf, StoredArray) else leaf

    return jax.tree.map(load, tree)


def restored(folder: epath.Path, abstract: Tree) -> Tree:
    """Reads all arrays of the tree in a folder, and places them on devices. Reads them in groups of at most `AT_ONCE`
    bytes to limit memory.
    """
    arguments = _restore_arguments(folder, abstract)
    leaves, structure = jax.tree.flatten(abstract)
    arrays = [None] * len(leaves)
    for part in _parts(leaves):
        for place, array in _read(folder, abstract, arguments, part).items():
            arrays[place] = array
        jax.block_until_ready([arrays[place] for place in part])
    return structure.unflatten(arrays)


def stored(folder: epath.Path, abstract: Tree) -> Tree:
    """Returns the tree in a folder with `StoredArray`s as leaves, which are read from disk only when they are used."""
    _restore_arguments(folder, abstract)  # Raises InputError if the arrays differ.
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
    leaves, structure = jax.tree.flatten(abstract)

    def array(place, leaf):
        def read():
            return _read(folder, abstract, arguments, {place})[place]

        return StoredArray(leaf.shape, leaf.dtype, leaf.sharding, lambda: unless_damaged(folder.parent, read))

    return structure.unflatten(itertools.starmap(array, enumerate(leaves)))


def _read(folder: epath.Path, abstract: Tree, arguments: Tree, places: set[int]) -> dict[int, Any]:
    """Reads some arrays of the tree in a folder.

    Args:
      folder: folder of the tree.
      abstract: shapes and types of all arrays.
      arguments: tree of Orbax's `RestoreArgs`, one for each array.
      places: indices of the arrays to read, among all leaves of the tree.

    Returns:
      A dict that maps these indices to the arrays.
    """
    leaves, structure = jax.tree.flatten(abstract)
    asked = structure.unflatten(leaf if place in places else ocp.PLACEHOLDER for place, leaf in enumerate(leaves))
    arguments = ocp.args.PyTreeRestore(asked, restore_args=arguments)
    read = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(folder, args=arguments))
    return {place: read[place] for place in places}


def _parts(leaves: list[jax.ShapeDtypeStruct]) -> Iterator[set[int]]:
    """Divides arrays into groups that are read at the same time: several arrays with a total of at most `AT_ONCE`
    bytes, or a single larger array. Yields the set of the indices in `leaves` of each group.

    The largest arrays come first, so that smaller ones can reuse the memory that was needed to read them.
    """
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    part, used = set(), 0
    for place in sorted(range(len(leaves)), key=lambda place: -sizes[place]):
        if part and used + sizes[place] > AT_ONCE:
            yield part
            part, used = set(), 0
        part, used = part | {place}, used + sizes[place]
    if part:
        yield part


def _restore_arguments(folder: epath.Path, abstract: Tree) -> Tree:
    """Returns the tree of Orbax's `RestoreArgs` for reading the arrays in a folder as described by `abstract`. Raises
    InputError if their names or shapes differ, or their dtypes have more precision, which Orbax would silently round.

    A dtype is passed only if it differs from the stored one: Orbax keeps each array that it casts until garbage
    collection.
    """
    if not folder.is_dir():
        raise Damaged(f"{folder.parent}: the checkpoint has no {folder.name}")
    present = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointHandler().metadata(folder).tree)
    wanted = ocp.tree.to_flat_dict(abstract)
    for path in sorted(present.keys() ^ wanted.keys(), key=str):
        name, has = "/".join(map(str, (folder.name, *path))), "has no" if path in wanted else "also has"
        raise InputError(f"{folder.parent}: the checkpoint {has} {name}; it belongs to another model or optimizer")
    for path, leaf in wanted.items():
        found = present[path]
        if tuple(found.shape) != leaf.shape or not np.can_cast(found.dtype, leaf.dtype):
            name = "/".join(map(str, (folder.name, *path)))
            ours, theirs = (f"{array.dtype} {list(array.shape)}" for array in (leaf, found))
            raise InputError(f"{folder.parent}: {name} is {theirs} in the checkpoint; expected {ours}")
    arguments = {
        path: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding,
            global_shape=leaf.shape,
            dtype=None if present[path].dtype == leaf.dtype else leaf.dtype,
        )
        for path, leaf in wanted.items()
    }
    return ocp.tree.from_flat_dict(arguments, target=abstract)
