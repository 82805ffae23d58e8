"""Divides work among the processes of a run: each process computes a part of it on its own devices, and all processes
receive all results.
"""

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
"""Size of the parameters, in bytes, from which `local_mesh` uses all devices of the process. For smaller parameters it
uses only one device.
"""


def local_mesh(mesh: jax.sharding.Mesh, size: int) -> jax.sharding.Mesh:
    """Returns a mesh for computing without other processes: it contains only devices of this process, and has the axis
    names of `mesh`.

    The mesh has only one device if the parameters are smaller than `ONE_DEVICE_BELOW`. Decoding a few rows takes as
    long on one device as on several, and splitting the computation would change rounding errors, which could change the
    order of results with almost equal scores.

    Args:
      mesh: mesh of all processes.
      size: size of the parameters in bytes.
    """
    if size >= ONE_DEVICE_BELOW and jax.process_count() == 1:
        return mesh
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    devices = own if size >= ONE_DEVICE_BELOW else own[:1]
    sizes = dict.fromkeys(mesh.axis_names, 1) | {"fsdp": len(devices)}
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), mesh.axis_names, axis_types=types, devices=devices)


def to_local(tree: Any, abstract: Any) -> Any:
    """Copies arrays from the mesh of all processes to devices of this process, one array at a time.

    Args:
      tree: arrays on the mesh of all processes.
      abstract: tree of the same structure. The attribute `sharding` of each leaf is the sharding of the copy.
    """

    def copy(array, leaf):
        several = jax.process_count() > 1
        whole = multihost_utils.process_allgather(array, tiled=True) if several else array
        return jax.device_put(whole, leaf.sharding)

    return jax.tree.map(copy, tree, abstract)


def gather(function: Callable[[], Result]) -> list[Result]:
    """Calls a function in every process. Returns the results of all processes to each of them, ordered by process
    index.

    Every process must call `gather`. Results are pickled to send them to the other processes.

    Raises:
      InputError: If the function raised InputError in any process. All processes raise it, so that none waits forever.
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
