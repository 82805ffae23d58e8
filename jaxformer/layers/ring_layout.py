"""How ring attention distributes queries and keys over devices, and which blocks of keys each device processes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxformer.layers.masks import OF_KEYS, OF_QUERIES, Mask
from jaxformer.parallel import sharding


@dataclasses.dataclass(frozen=True)
class RingLayout:
    """How queries and keys are distributed over the devices of the ring, and the properties of the mask that let a
    device skip blocks of keys. A block is the positions of a sequence that one device holds.
    """

    names: tuple[str, ...]
    """Mesh axes that the positions of a sequence are split over. The devices along them form the ring."""
    num_devices: int
    """Number of devices in the ring."""
    steps: int
    """Number of blocks of keys that each device receives, including its own. It is less than `num_devices` if a causal
    mask with a window hides the others from all queries.
    """
    rows: Any
    """Mesh axes that the batch is split over, as an entry of a `PartitionSpec`."""
    heads: Any
    """Mesh axes that the query heads are split over, as an entry of a `PartitionSpec`."""
    groups: Any
    """Mesh axes that the key and value heads are split over, as an entry of a `PartitionSpec`."""
    in_order: bool
    """Whether the mask hides the keys of later blocks (positions on later devices of the ring) from all queries, as in
    causal attention.
    """
    window: int | None
    """Window size of the mask, which lets devices skip blocks of keys that are too far away. None if there is no
    window, or if query i and key i may have different positions.
    """
    scale: float
    """Factor by which the products of queries and keys are multiplied."""

    @property
    def queries(self) -> PartitionSpec:
        """Partition spec of arrays whose axes are batch, queries, heads, and optionally others."""
        return PartitionSpec(self.rows, self.names, self.heads)

    @property
    def keys(self) -> PartitionSpec:
        """Partition spec of keys and values, [batch, kv_heads, keys, head_dim]."""
        return PartitionSpec(self.rows, self.groups, self.names)

    def bias(self, bias: jax.Array | None) -> PartitionSpec | None:
        """Returns the partition spec of a bias [batch or 1, heads, queries, keys]: each device has the bias of its own
        queries for the keys of all devices. None if there is no bias.
        """
        return None if bias is None else PartitionSpec(self._rows(bias), self.heads, self.names)

    def mask(self, mask: Mask | None) -> Mask | None:
        """Returns a `Mask` with a partition spec in place of each array: each device has the integers of its own
        queries and of the keys of all devices. None if there is no mask.
        """
        if mask is None:
            return None

        def spec(name: str, *positions: Any) -> PartitionSpec | None:
            array = getattr(mask, name)
            return None if array is None else PartitionSpec(self._rows(array), *positions)

        of_queries: dict[str, Any] = {name: spec(name, self.names) for name in OF_QUERIES}
        return dataclasses.replace(mask, **of_queries, **{name: spec(name) for name in OF_KEYS})

    def shared(self, bias: jax.Array) -> tuple[str, ...]:
        """Returns the mesh axes along which devices have different examples but the same bias. The gradient of the bias
        must be summed over them.
        """
        return sharding.names((self.rows,)) if self._rows(bias) is None else ()

    def sent(self, tree: Any, hops: int = 1) -> Any:
        """Sends a tree of arrays from each device to the one that follows it `hops` places later in the ring. Returns
        the tree that this device receives.
        """
        pairs = [(place, (place + hops) % self.num_devices) for place in range(self.num_devices)]
        return jax.tree.map(lambda array: jax.lax.ppermute(array, self.names, pairs), tree)

    def source(self, step: jax.Array | int) -> jax.Array:
        """Returns the index of the device whose block of keys this device processes in the given step."""
        return (jax.lax.axis_index(self.names) - step) % self.num_devices

    def where_seen(self, source: jax.Array, length: int, function: Callable[..., Any], carry: Any, *operands) -> Any:
        """Calls `function(carry, *operands)` and returns its result, unless the mask hides the block of keys of the
        device `source` from all queries of this device. In that case, returns `carry`. `length` is the number of keys
        per block.
        """
        here = jax.lax.axis_index(self.names)
        seen = []
        if self.in_order:
            seen.append(source <= here)
        if self.window is not None:
            # The nearest tokens of neighboring blocks are neighbors.
            seen.append((jnp.abs(here - source) - 1) * length + 1 < self.window)
        if not seen:
            return function(carry, *operands)
        return jax.lax.cond(
            functools.reduce(jnp.logical_and, seen), function, lambda carry, *_: carry, carry, *operands
        )

    def _rows(self, array: jax.Array) -> Any:
        return None if array.shape[0] == 1 else self.rows
