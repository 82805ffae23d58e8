"""Grouped matrix products: multiplies each row of a matrix by the kernel of its group. Used for mixtures of experts
that drop no tokens.

A row is a token, and a group is an expert. Rows are sorted by group and placed in blocks, each of which belongs to one
group (Gale et al. 2022, MegaBlocks). So the cost depends on the number of rows, and not on how uneven the groups are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.parallel import sharding

BLOCKS = {"cpu": 256, "gpu": 512, "tpu": 1}
"""Maximum number of rows in a block, by platform. On TPUs, `ragged_dot` computes groups of any size without blocks."""


class Groups(NamedTuple):
    """Layout of rows that are sorted by group. A slot is a position in the sorted array, and may be empty. A block is a
    fixed number of consecutive slots of the same group.
    """

    slot: jax.Array
    """Position of each row in the sorted array (its slot), integers [rows]. For rows without a group it is the number
    of slots, which is out of range.
    """
    row: jax.Array
    """Row in each slot, integers [slots]. For empty slots it is the number of rows, which is out of range."""
    group: jax.Array
    """Group of each block, integers [blocks]."""
    sizes: jax.Array
    """Number of slots of each group, integers [groups], a multiple of the block size."""

    @property
    def block(self) -> int:
        """Number of slots per block."""
        return len(self.row) // len(self.group)


def block_size(rows: int, groups: int) -> int:
    """Chooses the number of rows per block, a power of two.

    It is at most half of the average group size, because on average half of a block is empty in each group.
    """
    size, most = 1, min(BLOCKS[sharding.platform()], rows // (2 * groups))
    while 2 * size <= most:
        size *= 2
    return size


def arrange(group: jax.Array, groups: int, block: int) -> Groups:
    """Sorts rows by group, and returns their layout in slots.

    Args:
      group: group of each row, integers [rows]. A number of at least `groups` means no group.
      groups: number of groups.
      block: number of slots per block.
    """
    rows = len(group)
    # Every non-empty group leaves less than one block of slots empty.
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
    """Permutes the rows of a matrix, with an efficient gradient.

    With the inverse permutation, the gradient is a gather too. JAX would compute a scatter, which is slow.

    Args:
      x: matrix, [rows, embed].
      source: for each row of the result, the index of the row of `x` to copy. If this is the number of rows of `x`, the
        row of the result is 0.
      target: inverse permutation: for each row of `x`, its index in the result. Out of range for rows that are left
        out.
    """
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _move_forward(x, source, target):
    return move(x, source, target), target


def _move_backward(target, gradient):
    return jnp.take(gradient, target, axis=0, mode="fill", fill_value=0), None, None


move.defvjp(_move_forward, _move_backward)


def grouped_dot(x: jax.Array, kernels: jax.Array, groups: Groups) -> jax.Array:
    """Multiplies each row of a matrix by the kernel of its group.

    Args:
      x: rows in the slots of `groups`, [slots, inputs]. Empty slots are zero.
      kernels: kernel of each group, [groups, inputs, outputs], of the same type.
      groups: layout of the rows.

    Returns:
      Products, [slots, outputs]. Empty slots are zero.
    """
    if sharding.platform() != "tpu":
        return _dot_of_blocks(x, kernels, groups.group, _used_blocks(groups))
    y = jax.lax.ragged_dot(x, kernels, groups.sizes)
    return jnp.where(jnp.arange(len(x))[:, None] < jnp.sum(groups.sizes), y, 0)


def _used_blocks(groups: Groups) -> jax.Array:
    return jnp.sum(groups.sizes) // groups.block


@jax.custom_vjp
def _dot_of_blocks(x: jax.Array, kernels: jax.Array, group: jax.Array, used: jax.Array) -> jax.Array:
    """Multiplies the first `used` blocks of `x` by the kernels of their groups, in a loop over blocks."""
    return _loop(x, kernels, group, used, contracted=1)


def _loop(x, kernels, group, used, contracted: int) -> jax.Array:
    """Multiplies each of the first `used` blocks of rows by the kernel of its group, in a loop. `contracted` is the
    kernel axis to sum over.
    """
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
    """Returns zeros that are marked as varying over the same mesh axes as `like`.

    The carry of a loop inside `jax.shard_map` needs this mark.
    """
    return jnp.zeros(shape, dtype or like.dtype) + jnp.sum(like[:0]).astype(dtype or like.dtype)
