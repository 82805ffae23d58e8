"""Work that the processes of a run share: each computes on its own devices, and all get all results."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

from jaxformer.errors import InputError

Result = TypeVar("Result")


ONE_DEVICE_BELOW = 4 << 30
"""Bytes of parameters with which `local_mesh` has one device; larger ones are split over all of the process's."""


def local_mesh(mesh: jax.sharding.Mesh, size: int) -> jax.sharding.Mesh:
    """A mesh of devices of this process alone, with the axes of another one.

    It has one device if the parameters are small: how rows and products are divided among devices changes the last
    digits of a result, and with them the order of equal ones. Decoding a few rows takes as long on one device as on
    several, as each reads all parameters for every token.

    Args:
      mesh: the mesh of all processes.
      size: bytes of the parameters.
    """
    if size >= ONE_DEVICE_BELOW and jax.process_count() == 1:
        return mesh
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    devices = own if size >= ONE_DEVICE_BELOW else own[:1]
    sizes = dict.fromkeys(mesh.axis_names, 1) | {"fsdp": len(devices)}
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), mesh.axis_names, axis_types=types, devices=devices)


def to_local(tree: Any, abstract: Any) -> Any:
    """Copies arrays that all processes hold together to devices of this process, one array at a time.

    Args:
      tree: arrays on the mesh of all processes.
      abstract: the same tree of arrays with the shardings to give them.
    """

    def copy(array, leaf):
        several = jax.process_count() > 1
        whole = multihost_utils.process_allgather(array, tiled=True) if several else array
        return jax.device_put(whole, leaf.sharding)

    return jax.tree.map(copy, tree, abstract)


def gather(function: Callable[[], Result]) -> list[Result]:
    """Calls a function in every process, and returns the results of all, by the number of the process.

    Every process must call it. The results travel as pickles, between processes of one run, that trust each other.

    Raises:
      InputError: the function raised one in some process; it is raised in all, so that none waits for the others.
    """
    if jax.process_count() == 1:
        return [function()]
    try:
        result: Any = function()
    except InputError as error:
        result = error
    message = np.frombuffer(pickle.dumps(result), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(message)))
    padded = np.pad(message, (0, int(sizes.max()) - len(message)))
    messages = multihost_utils.process_allgather(padded)
    results = [pickle.loads(one[:size].tobytes()) for one, size in zip(messages, sizes, strict=True)]
    for one in results:
        if isinstance(one, InputError):
            raise one
    return results
