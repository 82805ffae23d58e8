"""The parameters of a stack's blocks, and the ways to run them.

Parameters of blocks that are built alike lie in one tree with a leading layer axis, whatever runs them. Where a period
has blocks with other parameters, each kind has a tree of its own under its number: `blocks/0`, `blocks/1`, ...
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.metrics.means import Mean, added
from jaxformer.parallel import metadata, sharding

BlockFunction = Callable[[jax.Array, jax.Array, Any, int], tuple[jax.Array, Any]]
"""Runs a block: (x, its number, its parameters, its kind) to x and what is kept of every block."""

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def initializer(inits: Sequence[Callable[[jax.Array], Any]], depth: int) -> Callable[[jax.Array], Any]:
    """An initializer of the parameters of `depth` blocks.

    Args:
      inits: for each kind of block, the boxed parameters of one from a key; block i is of kind i modulo their number.
      depth: number of blocks.
    """
    period = len(inits)

    def stacked(init, keys):
        params = jax.vmap(init)(keys)
        return jax.tree.map(lambda box: box.add_axis(0, {"letter": "l"}), params, is_leaf=metadata.is_boxed)

    def make(key):
        keys = jax.random.split(key, depth)
        shapes = [jax.eval_shape(init, keys[0]) for init in inits]
        if all(other == shapes[0] for other in shapes):
            return stacked(inits[0], keys)
        return {str(kind): stacked(init, keys[kind::period]) for kind, init in enumerate(inits)}

    return make


def unstacked(blocks: Any) -> tuple[Any, ...]:
    """The parameters of each block: of a stack, or of what this function made of one."""
    if isinstance(blocks, tuple):
        return blocks
    kinds = _kinds(blocks)
    depth = sum(map(_depth, kinds))
    return tuple(_layer(kinds[number % len(kinds)], number // len(kinds)) for number in range(depth))


def without_last(blocks: Any) -> tuple[Any, Any]:
    """Splits off the last block: the parameters of all others, and its own."""
    kinds = _kinds(blocks)
    if len(kinds) == 1:
        return jax.tree.map(lambda array: array[:-1], blocks), _layer(blocks, -1)
    last = str((sum(map(_depth, kinds)) - 1) % len(kinds))
    return {**blocks, last: jax.tree.map(lambda array: array[:-1], blocks[last])}, _layer(blocks[last], -1)


class Kept(NamedTuple):
    """The values kept of every block."""

    kinds: tuple[Any, ...]
    """For each kind of block, of those in whole periods, with a leading axis of the periods."""
    rest: tuple[Any, ...]
    """The values of each block after the last whole period."""

    def stacked(self, select: Callable[[Any], jax.Array | None]) -> jax.Array | None:
        """An array of every block, chosen by `select`, with a leading axis of the layers; None where it is None."""
        arrays = [select(part) for part in self.kinds]
        if arrays[0] is None:
            return None
        whole = arrays[0] if len(arrays) == 1 else jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
        return jnp.concatenate([whole, jnp.stack([select(part) for part in self.rest])]) if self.rest else whole

    def summed(self, select: Callable[[Any], dict[str, Mean]]) -> dict[str, Mean]:
        """The means of all blocks, chosen by `select`, added up by name."""
        whole = [jax.tree.map(lambda array: array.sum(0), select(part)) for part in self.kinds]
        return added(*whole, *map(select, self.rest))


def run(function: BlockFunction, x: jax.Array, blocks: Any, period: int, unroll: int) -> tuple[jax.Array, Kept]:
    """Runs blocks in a loop over whole periods, then those that remain.

    Args:
      function: runs a block.
      x: what the first block reads.
      blocks: the stacked parameters.
      period: blocks in a period.
      unroll: blocks an iteration of the loop, rounded up to whole periods.

    Returns:
      The last block's x, and what is kept of every block.
    """
    depth = sum(map(_depth, _kinds(blocks)))
    whole = depth // period

    def body(x, numbered):
        first, params = numbered
        kept = []
        for kind in range(period):
            x, part = function(x, first + kind, params[kind], kind)
            kept.append(part)
        return x, tuple(kept)

    numbered = jnp.arange(0, whole * period, period), _periods(blocks, period, whole)
    x, kinds = jax.lax.scan(body, x, numbered, unroll=max(1, min(-(-unroll // period), whole)))
    rest = []
    if depth % period:
        for number, params in list(enumerate(unstacked(blocks)))[whole * period :]:
            x, part = function(x, jnp.asarray(number), params, number % period)
            rest.append(part)
    return x, Kept(kinds, tuple(rest))


def _periods(blocks: Any, period: int, whole: int) -> list[Any]:
    """For each kind of block, the parameters of those in whole periods, with a leading axis of the periods."""
    kinds = _kinds(blocks)
    if period == 1:
        return kinds
    if len(kinds) == 1:
        return [_strided(blocks, kind, whole * period, period) for kind in range(period)]
    return [_strided(params, 0, whole, 1) for params in kinds]


def _strided(blocks: Any, start: int, stop: int, step: int) -> Any:
    return jax.tree.map(lambda array: array[start:stop:step], blocks)


def _kinds(blocks: Any) -> list[Any]:
    """The stacked parameters of each kind; one where all blocks are built alike."""
    if isinstance(blocks, dict) and all(name.isdigit() for name in blocks):
        return [blocks[str(kind)] for kind in range(len(blocks))]
    return [blocks]


def rematerialised(function: BlockFunction, remat: str, in_loop: bool) -> BlockFunction:
    """The function, rematerialised in the backward pass as `remat` says."""
    if remat == "none":
        return function
    # Outside a loop the compiler would see that something is computed twice, and keep it instead.
    return jax.checkpoint(function, prevent_cse=not in_loop, policy=REMAT_POLICIES[remat], static_argnums=3)


def default_unroll(depth: int, remat: str) -> int:
    """Blocks an iteration of the loop: all on CPU without remat, else 1."""
    # Unrolled, the compiler computes all blocks again at once, and saves no memory.
    return depth if sharding.platform() == "cpu" and remat == "none" else 1


def _depth(blocks: Any) -> int:
    return len(jax.tree.leaves(blocks)[0])


def _layer(blocks: Any, number: int) -> Any:
    return jax.tree.map(lambda array: array[number], blocks)
