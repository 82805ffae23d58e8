"""Products of rows with the matrix of their group: the computation of experts that drops no token.

Rows are sorted by their group and laid in blocks, each of which belongs to one group (Gale et al. 2022, MegaBlocks). So
a product reads and computes what the rows need and no more, however uneven the groups are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.parallel import sharding

BLOCKS = {"cpu": 256, "gpu": 512, "tpu": 1}
"""The most rows of a block by platform. A TPU has an instruction for groups of any size, whose blocks need no rows of
their own."""


class Groups(NamedTuple):
    """The layout of `a` rows of `g` groups in `s` slots, blocks of the same number of slots each."""

    slot: jax.Array
    """Integers [a]: the slot of each row; s where the row is in no group."""
    row: jax.Array
    """Integers [s]: the row of each slot; a where the slot is empty."""
    group: jax.Array
    """Integers [blocks]: the group of each block."""
    sizes: jax.Array
    """Integers [g]: the slots of each group, a multiple of those of a block."""

    @property
    def block(self) -> int:
        """Slots of a block."""
        return len(self.row) // len(self.group)


def block_size(rows: int, groups: int) -> int:
    """Rows of a block, a power of two: half of the mean group's at most, since on average half a block is empty."""
    size, most = 1, min(BLOCKS[sharding.platform()], rows // (2 * groups))
    while 2 * size <= most:
        size *= 2
    return size


def arrange(group: jax.Array, groups: int, block: int) -> Groups:
    """Sorts rows by their group.

    Args:
      group: integers [a], the group of each row; a number from `groups` on is none.
      groups: their number.
      block: slots of a block.
    """
    rows = len(group)
    # Every group that has a row wastes less than a block.
    most = min(groups, rows)
    blocks = (rows - most) // block + most
    order = jnp.argsort(group, stable=True)
    counts = jnp.sum(group[:, None] == jnp.arange(groups), axis=0, dtype=jnp.int32)
    sizes = -(-counts // block) * block
    ends, firsts = jnp.cumsum(sizes), jnp.cumsum(counts) - counts
    starts = ends - sizes
    of_block = jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right", method="compare_all")
    of_block = jnp.minimum(of_block, groups - 1)
    offset = jnp.arange(blocks * block) - jnp.repeat(starts[of_block], block)
    of_slot = jnp.repeat(of_block, block)
    filled = offset < counts[of_slot]
    row = jnp.where(filled, order[jnp.minimum(firsts[of_slot] + offset, rows - 1)], rows)
    ordered = jnp.minimum(group[order], groups)
    place = jnp.append(starts - firsts, blocks * block)[ordered] + jnp.where(ordered < groups, jnp.arange(rows), 0)
    slot = jnp.zeros(rows, place.dtype).at[order].set(place, unique_indices=True)
    return Groups(slot, row, of_block, sizes)


@jax.custom_vjp
def move(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """Moves rows one to one: row i of the result is row `source[i]` of x [n, d], or 0 where that is n.

    `target` is the way back, for the gradient: where each row of x is in the result. Then both directions are gathers;
    the gradient of a gather is otherwise a scatter, which is slow.
    """
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _move_forward(x, source, target):
    return move(x, source, target), target


def _move_backward(target, gradient):
    return jnp.take(gradient, target, axis=0, mode="fill", fill_value=0), None, None


move.defvjp(_move_forward, _move_backward)


def grouped_dot(x: jax.Array, kernels: jax.Array, groups: Groups) -> jax.Array:
    """The product of each row of x with its group's kernel.

    Args:
      x: [s, i], in the slots of `groups`; empty slots have zeros.
      kernels: [g, i, o], of the same type.
      groups: the layout.

    Returns:
      [s, o]; zeros in empty slots.
    """
    if sharding.platform() != "tpu":
        return _dot_of_blocks(x, kernels, groups.group, _used_blocks(groups))
    y = jax.lax.ragged_dot(x, kernels, groups.sizes)
    return jnp.where(jnp.arange(len(x))[:, None] < jnp.sum(groups.sizes), y, 0)


def _used_blocks(groups: Groups) -> jax.Array:
    return jnp.sum(groups.sizes) // groups.block


@jax.custom_vjp
def _dot_of_blocks(x: jax.Array, kernels: jax.Array, group: jax.Array, used: jax.Array) -> jax.Array:
    """The products of `used` blocks of x with their kernels, one by one."""
    return _loop(x, kernels, group, used, contracted=1)


def _loop(x, kernels, group, used, contracted: int) -> jax.Array:
    """The products of blocks with their kernels, summed over axis `contracted` of the kernels."""
    blocks = x.reshape(len(group), -1, x.shape[-1])

    def body(number, y):
        kernel = jax.lax.dynamic_index_in_dim(kernels, group[number], keepdims=False)
        part = jax.lax.dot_general(blocks[number], kernel, (((1,), (contracted - 1,)), ((), ())))
        return jax.lax.dynamic_update_index_in_dim(y, part, number, axis=0)

    y = _zeros((*blocks.shape[:2], kernels.shape[3 - contracted]), x)
    return jax.lax.fori_loop(0, used, body, y).reshape(len(x), -1)


def _forward(x, kernels, group, used):
    return _dot_of_blocks(x, kernels, group, used), (x, kernels, group, used)


def _backward(kept, gradient):
    x, kernels, group, used = kept
    blocks = x.reshape(len(group), -1, x.shape[-1])
    gradients = gradient.reshape(len(group), -1, gradient.shape[-1])

    def body(number, total):
        part = jnp.matmul(blocks[number].T, gradients[number], preferred_element_type=jnp.float32)
        before = jax.lax.dynamic_index_in_dim(total, group[number], keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, before + part, group[number], axis=0)

    total = jax.lax.fori_loop(0, used, body, _zeros(kernels.shape, x, jnp.float32))
    return _loop(gradient, kernels, group, used, contracted=2), total.astype(kernels.dtype), None, None


_dot_of_blocks.defvjp(_forward, _backward)


def _zeros(shape: tuple[int, ...], like: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that vary over the same mesh axes as `like`, as the carry of a loop in `jax.shard_map` must."""
    return jnp.zeros(shape, dtype or like.dtype) + jnp.sum(like[:0]).astype(dtype or like.dtype)
