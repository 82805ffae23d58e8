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

    Methods that use the index of a device are for use inside `jax.shard_map` only.
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
    balanced: bool
    """Whether each device holds two half blocks, one as far from the start of the sequence as the other is from its
    end, so that under a causal mask all devices compute the same number of scores. Otherwise, it holds consecutive
    positions.
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

    @property
    def chunks(self) -> int:
        """Number of chunks of consecutive positions in a block."""
        return 2 if self.balanced else 1

    def starts(self, device: jax.Array, length: int) -> tuple[jax.Array, ...]:
        """Returns the index of the first position of each chunk in the block of a device. `length` is the number of
        positions per chunk.
        """
        if not self.balanced:
            return (device * length,)
        return device * length, (2 * self.num_devices - 1 - device) * length

    def where_seen(self, number, length: int, function: Callable[..., Any], carry, fixed) -> tuple[Any, Any]:
        """Calls `function` for the block of keys that this device processes in a step after the first, but only for
        queries and keys of the block between which the mask allows attention. If it allows none, `function` is not
        called.

        Args:
          number: number of the step, at least 1.
          length: number of keys per chunk.
          function: function (state of the queries, state of the block, fixed arrays of the queries, fixed arrays of the
            block, starts of its chunks) → (state of the queries, state of the block).
          carry: tuple of the states of the queries and of the block before the call.
          fixed: tuple of fixed arrays of the queries and of the block. If the layout is balanced, queries must be axis
            1 of all arrays of the queries, and keys must be axis 2 of all arrays of the block.

        Returns:
          The states of the queries and of the block after the call.
        """
        here, source = jax.lax.axis_index(self.names), self.source(number)
        starts = self.starts(source, length)
        if self.balanced:
            return self._where_half_seen(source < here, function, carry, fixed, starts)
        seen = []
        if self.in_order:
            seen.append(source <= here)
        if self.window is not None:
            # The nearest tokens of neighboring blocks are neighbors.
            seen.append((jnp.abs(here - source) - 1) * length + 1 < self.window)
        if not seen:
            return function(*carry, *fixed, starts)
        return jax.lax.cond(
            functools.reduce(jnp.logical_and, seen), lambda: function(*carry, *fixed, starts), lambda: carry
        )

    def _where_half_seen(self, earlier, function: Callable[..., Any], carry, fixed, starts) -> tuple[Any, Any]:
        """Calls `function` as `where_seen` does, for a balanced layout. `earlier` is whether the block of keys belongs
        to a device with a lower index. Then all queries of this device attend to the first half of the keys, and
        otherwise its second half of the queries to all keys.
        """
        (queries, block), (of_queries, of_block) = carry, fixed

        def first_keys():
            (first, of_first), (second, _) = (_half(number, (block, of_block), axis=2) for number in range(2))
            after, first = function(queries, first, of_queries, of_first, starts[:1])
            return after, _joined(first, second, axis=2)

        def last_queries():
            (first, _), (second, of_second) = (_half(number, (queries, of_queries), axis=1) for number in range(2))
            second, after = function(second, block, of_second, of_block, starts)
            return _joined(first, second, axis=1), after

        return jax.lax.cond(earlier, first_keys, last_queries)

    def exchange(self, query, key, value, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array, Mask]:
        """Sends half blocks to the devices that hold them in a balanced layout. Returns the queries, keys and values,
        and the mask, whose integers of queries are exchanged in the same way.
        """

        def local(query, key, value, mask):
            some = {name: getattr(mask, name) for name in OF_QUERIES}
            some = jax.tree.map(lambda array: self._exchanged(array, axis=1), some)
            arrays = self._exchanged(query, axis=1), self._exchanged(key, axis=2), self._exchanged(value, axis=2)
            return *arrays, dataclasses.replace(mask, **some)

        specs = self.queries, self.keys, self.keys, self.mask(mask)
        split = jax.shard_map(local, in_specs=specs, out_specs=specs, check_vma=False)
        return split(query, key, value, mask)

    def restore(self, output: jax.Array) -> jax.Array:
        """Sends half blocks of the output [batch, queries, heads, head_dim] back to the devices from which `exchange`
        has sent the queries.
        """

        def local(output):
            first, second = (_half(number, output, axis=1) for number in range(2))
            even = jax.lax.axis_index(self.names) % 2 == 0
            halves = jnp.where(even, first, second), jnp.where(even, second, first)
            back = [[(holder, device) for device, holder in self._moves(number)] for number in range(2)]
            return jnp.concatenate(list(map(self._permuted, halves, back)), axis=1)

        return jax.shard_map(local, in_specs=self.queries, out_specs=self.queries, check_vma=False)(output)

    def _exchanged(self, array: jax.Array, axis: int) -> jax.Array:
        """Sends both halves of this device's block to the devices that hold them in a balanced layout. Returns the two
        half blocks that it receives, one after the other.
        """
        of_even, of_odd = (self._permuted(_half(number, array, axis), self._moves(number)) for number in range(2))
        even = jax.lax.axis_index(self.names) % 2 == 0
        return jnp.concatenate([jnp.where(even, of_even, of_odd), jnp.where(even, of_odd, of_even)], axis)

    def _moves(self, half: int) -> list[tuple[int, int]]:
        """Returns the pairs (device, device that holds its first (0) or second (1) half block in a balanced layout).

        Half block c of the sequence is held by device c, or by device 2n - 1 - c if there are only n devices. Each
        device holds one with an even and one with an odd number, so both exchanges are permutations of the devices.
        """
        last = 2 * self.num_devices - 1
        return [(device, min(2 * device + half, last - 2 * device - half)) for device in range(self.num_devices)]

    def _permuted(self, array: jax.Array, pairs: list[tuple[int, int]]) -> jax.Array:
        return jax.lax.ppermute(array, self.names, pairs)

    def _rows(self, array: jax.Array) -> Any:
        return None if array.shape[0] == 1 else self.rows


def _half(number: int, tree: Any, axis: int) -> Any:
    """Returns the first (0) or second (1) half of each array in a tree along an axis."""

    def cut(array):
        size = array.shape[axis] // 2
        return jax.lax.slice_in_dim(array, number * size, (number + 1) * size, axis=axis)

    return jax.tree.map(cut, tree)


def _joined(first: Any, second: Any, axis: int) -> Any:
    return jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis), first, second)
