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
"""Maximum number of rows (tokens) in a block, by platform. On TPUs, `ragged_dot` computes groups of any size without
blocks.
"""


class Groups(NamedTuple):
    """Layout of rows (tokens) that are sorted by group (expert). A slot is a position in the sorted array, and may be
    empty. A block is a fixed number of consecutive slots that belong to the same group.
    """

    slot: jax.Array
    """Slot of each row (its position in the array that is sorted by group), integers [rows]. For rows without a group
    it is the number of slots, which is out of range.
    """
    row: jax.Array
    """Index of the row in each slot of the array that is sorted by group, integers [slots]. For empty slots it is the
    number of rows, which is out of range.
    """
    group: jax.Array
    """Group that each block of slots belongs to, integers [blocks]."""
    sizes: jax.Array
    """Number of slots of each group including empty ones, integers [groups]. A multiple of the block size."""

    @property
    def block(self) -> int:
        """Number of slots per block."""
        return len(self.row) // len(self.group)


def block_size(rows: int, groups: int) -> int:
    """Chooses the number of rows per block for `rows` rows in `groups` groups. Returns a power of two, at most half of
    the average number of rows per group.

    In each group, about half of the last block is empty, so larger blocks would waste more computation.
    """
    size, most = 1, min(BLOCKS[sharding.platform()], rows // (2 * groups))
    while 2 * size <= most:
        size *= 2
    return size


def arrange(group: jax.Array, groups: int, block: int) -> Groups:
    """Sorts rows (tokens) by group (expert), and returns their layout in slots.

    Args:
      group: group of each row, integers [rows]. Rows whose number is `groups` or more belong to no group and get no
        slot.
      groups: number of groups.
      block: number of slots per block. Each group occupies whole blocks.
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
    """Permutes the rows of a matrix. Returns [rows of the result, embed].

    Because the caller also gives the inverse permutation, the gradient is computed by a gather. JAX would compute it by
    a scatter, which is slow.

    Args:
      x: matrix, [rows, embed].
      source: for each row of the result, the index of the row of `x` to copy. If this is the number of rows of `x`, the
        row of the result is 0.
      target: inverse permutation: for each row of `x`, its index in the result. Out of range for rows that are not in
        the result.
    """
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _move_forward(x, source, target):
    return move(x, source, target), target


def _move_backward(target, gradient):
    return jnp.take(gradient, target, axis=0, mode="fill", fill_value=0), None, None


move.defvjp(_move_forward, _move_backward)


def grouped_dot(x: jax.Array, kernels: jax.Array, groups: Groups) -> jax.Array:
    """Multiplies each row of a matrix (a token) by the kernel of its group (an expert).

    Args:
      x: rows in the slots of `groups`, [slots, inputs]. Empty slots are zero.
      kernels: kernel of each group, [groups, inputs, outputs], of the same type as `x`.
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
    """Multiplies each of the first `used` blocks of `x` by the kernel of its group, in a loop over blocks. The rest of
    the result is 0.

    Args:
      x: blocks of rows, one after the other, [slots, inputs].
      kernels: kernel of each group, [groups, inputs, outputs].
      group: group of each block, integers [blocks].
      used: number of blocks that are not empty.
    """
    return _loop(x, kernels, group, used, contracted=1)


def _loop(x, kernels, group, used, contracted: int) -> jax.Array:
    """Multiplies each of the first `used` blocks of `x` by the kernel of its group, in a loop over blocks. Arguments as
    for `_dot_of_blocks`. `contracted` is the kernel axis to sum over: 1 for the product, 2 for its gradient with
    respect to `x`.
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
    """Returns an array of zeros that varies over the same mesh axes as `like`, from the viewpoint of JAX's type system.

    Inside `jax.shard_map`, the initial carry of a loop must have this property.
    """
    return jnp.zeros(shape, dtype or like.dtype) + jnp.sum(like[:0]).astype(dtype or like.dtype)
