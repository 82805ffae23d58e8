"""Stores arrays in the memory of the host between training steps, so that they occupy device memory only while they are
used (`optimizer.offload`).
"""

from typing import Any

import jax

from jaxformer.errors import InputError

HOST = "pinned_host"
"""JAX's name of page-locked host memory. Devices read and write it directly, without the processor of the host."""


def in_host_memory(tree: Any) -> Any:
    """Returns a tree of abstract arrays with shardings that place the arrays in host memory. Only the memory changes:
    each device has the same part of an array as before, in the memory of its host. Scalars stay in device memory.
    """

    def place(leaf):
        if not leaf.ndim:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind(HOST))

    return jax.tree.map(place, tree)


def offloaded(tree: Any) -> list[Any]:
    """Returns the arrays of a tree that `in_host_memory` places in host memory: all except for scalars."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]


def to_device(tree: Any) -> Any:
    """Copies the arrays of a tree from host memory to device memory. Only for use under `jax.jit`."""
    return jax.tree.map(lambda array: jax.device_put(array, jax.memory.Space.Device) if array.ndim else array, tree)


def to_host(tree: Any) -> Any:
    """Copies the arrays of a tree, except for scalars, to host memory, unless they are already there. Only for use
    under `jax.jit`.
    """

    def move(array):
        if not array.ndim or jax.typeof(array).memory_space == jax.memory.Space.Host:
            return array
        return jax.device_put(array, jax.memory.Space.Host)

    return jax.tree.map(move, tree)


def check(mesh: jax.sharding.Mesh, setting: str) -> None:
    """Raises InputError if the devices of a mesh cannot use host memory.

    Args:
      mesh: device mesh of the run.
      setting: field of the experiment with its value, such as `optimizer.offload=True`, for the error message.
    """
    device = mesh.local_devices[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"{setting}: {device.device_kind} devices cannot use host memory (JAX's {HOST}), only {', '.join(kinds)}; "
            "expected False"
        )
