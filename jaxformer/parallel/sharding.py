"""Defines the mesh of devices, the letters of array axes, and the rules that map array axes to mesh axes.

Every array axis in jaxformer has a letter. The letters of an einsum equation define the computation and also the
sharding: `Linear("btd,dhk->bthk")` gives its kernel the axes embed, heads, head_dim, and `RULES` maps them to the mesh.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxformer.errors import InputError

AXES: Mapping[str, str] = {
    "b": "batch",
    "t": "query_position",
    "s": "key_position",
    "r": "residual_position",
    "v": "vocab",
    "l": "layers",
    "d": "embed",
    "h": "heads",
    "g": "kv_heads",
    "k": "head_dim",
    "f": "mlp",
    "e": "experts",
    "p": "patches",
    "y": "patch_row",
    "x": "patch_column",
    "z": "patch_frame",
    "n": "channels",
    "m": "predictions",
    "c": "classes",
    "i": "embed_in",
    "a": "audio_frames",
    "u": "audio_samples",
    "w": "taps",
    "_": "whole",
}
"""Glossary of the array axes in jaxformer: maps the letter of each axis to its meaning. `r` is the axis of token
positions between layers (in norms and residual sums), `i` the input axis of a kernel whose input and output have the
same width, `w` the axis of neighboring positions that a convolution kernel combines, and `_` an axis that is never
split over devices.
"""

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("slices", "data", "fsdp", "expert", "pipeline"),
    "embed": ("fsdp", "sequence"),
    "embed_in": ("fsdp", "sequence"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "query_position": ("sequence",),
    "residual_position": ("sequence", "tensor"),
    "key_position": (),
    "layers": ("pipeline",),
    "head_dim": (),
    "experts": ("expert",),
    "patches": (),
    "patch_row": (),
    "patch_column": (),
    "patch_frame": (),
    "channels": (),
    "predictions": (),
    "classes": (),
    "audio_frames": (),
    "audio_samples": (),
    "taps": (),
    "whole": (),
}
"""Maps each array axis to the mesh axes that it is split over. If several dimensions of an array are mapped to the same
mesh axis, only the first of them is split over it. If the number of devices along the mesh axes does not divide the
length of a dimension, mesh axes are left out, from the last one on, until it does.
"""


IMPLEMENTED = ("slices", "data", "pipeline", "fsdp", "expert", "sequence", "tensor")
"""Names of the mesh axes that are supported. The size of any other axis must be 1."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Number of devices along each axis of the device mesh. Devices that are next to each other along the axis `tensor`
    have the fastest connections.

    At most one size may be -1, which stands for the number of devices that the other axes leave.
    """

    data: int = -1
    """Number of copies of the model, each of which trains on its share of the batch (data parallelism). The default,
    -1, is the number of devices that the other axes leave.
    """
    fsdp: int = 1
    """Number of devices across which parameters, optimizer state and the batch are sharded."""
    tensor: int = 1
    """Number of devices across which attention heads, MLP width and vocabulary are sharded. Between layers, the token
    positions are sharded across the same devices (Korthikanti et al. 2022).
    """
    sequence: int = 1
    """Number of devices across which the token positions of each batch row are sharded. Parameters and optimizer state
    are sharded across them too.
    """
    expert: int = 1
    """Number of devices across which the experts of each `ExpertMlp` layer are sharded. The batch is sharded across
    them too.
    """
    pipeline: int = 1
    """Number of pipeline stages: devices across which the Transformer blocks of each stack are distributed. For layers
    outside the stacks, the batch is sharded across these devices.
    """
    slices: int = 1
    """Number of TPU slices or GPU nodes that train together, connected by a slower network. Each of them has its own
    copies of the model.
    """
    pipeline_microbatches: int | None = None
    """Number of micro-batches into which the pipeline splits a batch, a multiple of `pipeline`. With more
    micro-batches, devices wait less for each other. Defaults to `pipeline`.
    """
    pipeline_repeats: int = 1
    """Number of times that a micro-batch passes through all pipeline stages (circular schedule). With more repeats,
    devices wait less for each other, but communicate more.
    """
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Overrides of `RULES`: pairs of the name of an array axis and the mesh axes across which it is sharded, such as
    `(("vocab", ("fsdp", "tensor")),)`.
    """

    def __post_init__(self):
        sizes = self._given()
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise InputError(f"mesh.{name}={size}: expected at least 1, or -1 for the rest")
            if size != 1 and name not in IMPLEMENTED:
                raise InputError(f"mesh.{name}={size}: not implemented; expected 1")
        if list(sizes.values()).count(-1) > 1:
            raise InputError(f"mesh: only one of {', '.join(sizes)} can be -1")
        fields = {"pipeline_repeats": self.pipeline_repeats, "pipeline_microbatches": self.pipeline_microbatches}
        for name, value in fields.items():
            if value is not None and value < 1:
                raise InputError(f"mesh.{name}={value}: expected at least 1")
        for axis, names in self.rules:
            if axis == "batch":
                raise InputError(f"mesh.rules: batch is always split over {', '.join(RULES['batch'])}; leave it out")
            if axis not in RULES:
                raise InputError(f"mesh.rules: {axis!r} is not an axis of an array; expected one of {', '.join(RULES)}")
            if unknown := [name for name in names if name not in sizes]:
                raise InputError(f"mesh.rules: {axis}: {unknown[0]!r} is not a mesh axis; expected {', '.join(sizes)}")

    def _given(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in AXIS_NAMES}

    def sizes(self, devices: int) -> dict[str, int]:
        """Returns the size of each mesh axis if there are `devices` devices, outermost axis first.

        Raises:
          InputError: If the product of the sizes exceeds or (for an axis of size -1) does not divide the number of
            devices.
        """
        sizes = self._given()
        fixed = int(np.prod([size for size in sizes.values() if size != -1]))
        if fixed > devices or (-1 in sizes.values() and devices % fixed):
            shown = {name: size for name, size in sizes.items() if size != 1 or name in ("data", "fsdp", "tensor")}
            raise InputError(
                f"mesh {'×'.join(shown)}={'×'.join(map(str, shown.values()))} does not fit {devices} device(s): "
                f"its sizes must multiply to {devices} or fewer, and divide it where one of them is -1"
            )
        return {name: devices // fixed if size == -1 else size for name, size in sizes.items()}


AXIS_NAMES = ("slices", "data", "pipeline", "fsdp", "expert", "sequence", "tensor")
"""Names of the mesh axes, from the one with the least communication (outermost) to the one with the most."""


def make_mesh(mesh: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Creates a JAX mesh of devices with the axis sizes of a mesh config.

    Devices that are neighbours along a mesh axis are also neighbours in the TPU network. If there are several slices,
    only devices along the mesh axis `slices` are in different slices.

    Args:
      mesh: config with the sizes of the mesh axes.
      devices: devices of the mesh. Defaults to all devices.

    Raises:
      InputError: If the sizes do not fit the number of devices or slices, or if there are several processes and the
        mesh does not contain all devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh.sizes(len(devices))
    used = int(np.prod(list(sizes.values())))
    if used != len(devices) and jax.process_count() > 1:
        raise InputError(f"mesh of {used} devices: {len(devices)} in {jax.process_count()} processes must all be used")
    # Linen's parameters meet only automatic axes.
    types = (AxisType.Auto,) * len(sizes)
    return jax.sharding.Mesh(_laid_out(sizes, devices[:used]), tuple(sizes), axis_types=types)


def _laid_out(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Arranges devices in an array with one dimension per mesh axis, such that neighbours in the array are close in the
    network. `sizes` maps mesh axes to their sizes.
    """
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if devices[0].platform != "tpu" or slices == 1:
        # An axis may take part of a dimension of the network: 32 devices of a torus of 4×4×4, for example.
        return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    if sizes["slices"] != slices:
        raise InputError(f"mesh.slices={sizes['slices']}: the devices are in {slices} slices; expected {slices}")
    inside = [1 if name == "slices" else size for name, size in sizes.items()]
    across = [size if name == "slices" else 1 for name, size in sizes.items()]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


_config = jax.make_user_context(default_value=None)
"""Config of the current mesh (see `use`). It is a JAX user context: if it changes, functions under `jax.jit` are
compiled again.
"""


def config() -> Mesh:
    """Returns the config of the current mesh (see `use`), or the default `Mesh()` if none is set."""
    return _config.value or Mesh()


def rules() -> dict[str, tuple[str, ...]]:
    """Returns the sharding rules that currently apply: `RULES` with the overrides of the current mesh config."""
    return {**RULES, **dict(config().rules)}


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh, config: Mesh) -> Iterator[None]:
    """Context manager that makes `mesh` JAX's current mesh, and `config` its config, which determines the sharding
    rules.
    """
    with jax.set_mesh(mesh), use_config(config):
        yield


def use_config(config: Mesh) -> contextlib.AbstractContextManager:
    """Context manager that changes the config of the current mesh, and with it the sharding rules, but keeps JAX's
    current mesh.
    """
    return _config(config)


def mesh_text(sizes: Mapping[str, int], one: str = "data 1") -> str:
    """Formats the sizes of the mesh axes with more than one device, such as `data 2 × tensor 4`. If there are none,
    returns `one`.
    """
    return " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or one


def num_parts(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, axis: str) -> int:
    """Returns the number of parts into which the current rules split an array axis, such as `batch`, on a mesh."""
    return int(np.prod([mesh.shape.get(name, 1) for name in rules()[axis]], dtype=int))


def current_num_parts(axis: str) -> int:
    """Returns the number of parts into which an array axis, such as `batch`, is split on the current mesh. Returns 1
    without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_parts(mesh, axis)


def platform() -> str:
    """Returns the platform (`cpu`, `gpu` or `tpu`) that the traced program is compiled for: the platform of the current
    mesh if there is one, otherwise JAX's default platform.

    Code that depends on the platform calls this function instead of `jax.default_backend()`, because the devices of a
    mesh may belong to another platform, for example if a program is only compiled for them.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()  # JAX before 0.10.2 knows no more of a device.
    return getattr(device, "platform", "cpu" if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu")


def partition_spec(
    letters: Sequence[str], shape: Sequence[int], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array, from the letters of its axes and the current sharding rules.

    A dimension is split over the mesh axes of its rule (see `RULES`). If the number of devices along them does not
    divide the length of the dimension, mesh axes are left out, from the last one on, until it does.

    Manual mesh axes (inside `jax.shard_map`) are left out, because arrays are already split along them.

    Args:
      letters: one letter of `AXES` per dimension.
      shape: shape of the array.
      mesh: a mesh with the axes of `Mesh`.

    Raises:
      ValueError: If a letter is not in the glossary, or the number of letters is not the number of dimensions.
    """
    if len(letters) != len(shape):
        raise ValueError(f"axes {''.join(letters)!r} do not describe an array of shape {tuple(shape)}")
    if unknown := [letter for letter in letters if letter not in AXES]:
        raise ValueError(f"unknown axis {unknown[0]!r}: the glossary has {', '.join(AXES)}")
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    sizes = {axis: size for axis, size in mesh.shape.items() if types[axis] != AxisType.Manual}
    given, taken, entries = rules(), set(), []
    for letter, size in zip(letters, shape, strict=True):
        axes = tuple(axis for axis in given[AXES[letter]] if axis not in taken and sizes.get(axis, 1) > 1)
        while size % parts(axes, mesh):
            axes = axes[:-1]
        taken.update(axes)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def parts(entry: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts into which one entry of a partition spec (a mesh axis, several of them, or None)
    splits the corresponding array dimension.
    """
    return math.prod(mesh.shape[name] for name in names((entry,)))


def names(spec: Iterable[Any]) -> tuple[str, ...]:
    """Returns the names of all mesh axes in a partition spec as one flat tuple. `spec` may also be a sequence of some
    of its entries.
    """
    return tuple(name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry))


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Constrains the sharding of an array on the current mesh (`jax.set_mesh`), according to the letters of its axes
    and the sharding rules. Returns the array unchanged if there is no current mesh.

    Args:
      x: the array.
      letters: one letter per axis. See `AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(letters, x.shape, mesh))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(tree: Any) -> Any:
    """Returns a tree with the sharding of each array in `tree`. The arrays may be abstract (without values)."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of batch arrays: rows (axis 0) are divided among devices, and other axes are not split."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(batch: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Returns the indices of the batch rows that are stored on devices of this process, in ascending order. `batch` is
    the number of rows of the global batch.
    """
    index_of = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    return sorted({row for index in index_of.values() if index for row in range(batch)[index[0]]})


def global_batch(local: Mapping[str, np.ndarray], rows: Sequence[int], batch: int, mesh) -> dict[str, jax.Array]:
    """Creates the arrays of a global batch, sharded over the mesh. Each process provides the rows that are stored on
    its own devices. Returns the arrays, [batch, ...], keyed by the names in `local`.

    Args:
      local: arrays [len(rows), ...] of this process, in the order of `rows`.
      rows: indices of the rows, as returned by `local_rows`.
      batch: number of rows of the global batch.
      mesh: mesh of all processes.
    """
    sharding = batch_sharding(mesh)
    place = {row: index for index, row in enumerate(rows)}

    def lay(array):
        def shard(index):
            first, last, _ = index[0].indices(batch)
            return array[place[first] : place[last - 1] + 1]

        return jax.make_array_from_callback((batch, *array.shape[1:]), sharding, shard)

    return {key: lay(array) for key, array in local.items()}
