"""Stores the parameters of a stack of Transformer blocks, and runs the blocks in a loop.

The parameters of all blocks are stacked: one tree of arrays with a leading layer axis. A stack may alternate between
several kinds of blocks, such as one block with global and five with local attention. This sequence of kinds is a period
(`Transformer.period`). If the parameters of the kinds differ in structure or shape, each kind has a stacked tree of its
own: `blocks/0`, `blocks/1`, ...
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.positions import Placement
from jaxformer.metrics.means import Mean, added
from jaxformer.parallel import metadata, sharding


class BlockFunction(Protocol):
    """Type of a function that runs one block of a stack."""

    def __call__(
        self, x: jax.Array, number: jax.Array, params: Any, kind: int, at: jax.Array | None = None, /
    ) -> tuple[jax.Array, Any]:
        """Runs a block.

        Args:
          x: input of the block, [batch, length, embed].
          number: index of the block in the stack, scalar.
          params: parameters of the block.
          kind: index of the kind of block in `Transformer.period`.
          at: positions to compute the output for, integers [batch, predictions]. If None, all positions.

        Returns:
          The output of the block, [batch, length, embed] or, if `at` is given, [batch, predictions, embed]; and a tree
          of further values, such as attention weights, which `run` collects from all blocks.
        """
        ...


class SharedInputs(NamedTuple):
    """Inputs that are the same for all blocks of a stack, unlike the hidden vectors `x`."""

    inputs: BlockInputs
    """Attention masks, encoder output and other inputs. `position_ids` and `at` are None here: `placements` contains
    the positions, and only the last block gets `at`.
    """
    placements: tuple[Placement | None, ...]
    """Rotations or biases that represent positions in self-attention, one entry per kind of block. An entry is None if
    self-attention does not use positions.
    """
    key: jax.Array | None
    """Random key of dropout, from which each block derives its own key by its index. None without dropout."""

    def with_batch_axis(self) -> "SharedInputs":
        """Returns a copy in which attention biases [heads, queries, keys], and vectors that are added to keys, have a
        batch axis of length 1, so that a pipeline does not mistake their first axis for the batch axis.
        """

        def expanded(placement):
            if placement is None:
                return None
            arrays = {name: getattr(placement, name) for name in ("bias", "relative_keys")}
            changed = {name: array[None] for name, array in arrays.items() if array is not None and array.ndim == 3}
            return dataclasses.replace(placement, **changed)

        inputs = dataclasses.replace(self.inputs, memory_placement=expanded(self.inputs.memory_placement))
        return SharedInputs(inputs, tuple(map(expanded, self.placements)), self.key)


BLOCK_INPUT = "block_input"
"""Name that the input of each block gets from `checkpoint_name`, so that a JAX checkpoint policy can refer to it."""
REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(BLOCK_INPUT,),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Maps values of `Transformer.remat` to JAX checkpoint policies, which select the values of a block to keep for the
backward pass. With the policy None, only the inputs of the block are kept.
"""


def initializer(inits: Sequence[Callable[[jax.Array], Any]], depth: int) -> Callable[[jax.Array], Any]:
    """Returns a function that takes a random key and returns the initial parameters of `depth` blocks, stacked along a
    leading layer axis.

    Args:
      inits: one function per kind of block, which takes a random key and returns the parameters of one block. Block i
        has the kind i modulo the number of kinds.
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
    """Splits stacked parameters into a tuple with one parameter tree per block. If `blocks` is already such a tuple, it
    is returned unchanged.
    """
    if isinstance(blocks, tuple):
        return blocks
    kinds = _kinds(blocks)
    return tuple(_layer(kinds[number % len(kinds)], number // len(kinds)) for number in range(depth(blocks)))


def without_last(blocks: Any) -> tuple[Any, Any]:
    """Splits off the last block. Returns the stacked parameters of all other blocks, and the parameters of the last
    block without a layer axis.
    """
    kinds = _kinds(blocks)
    if len(kinds) == 1:
        return jax.tree.map(lambda array: array[:-1], blocks), _layer(blocks, -1)
    last = str((depth(blocks) - 1) % len(kinds))
    return {**blocks, last: jax.tree.map(lambda array: array[:-1], blocks[last])}, _layer(blocks[last], -1)


class BlockValues(NamedTuple):
    """Further values that the blocks of a stack return in addition to their output vectors, such as attention weights,
    collected from all blocks.
    """

    periodic: tuple[Any, ...]
    """Values of the blocks in complete periods (repetitions of `Transformer.period`): one tree per kind of block, whose
    arrays have a leading axis over the periods.
    """
    remaining: tuple[Any, ...]
    """Values of the blocks after the last complete period, one entry per block. Empty if the last period is complete.
    """

    def stacked(self, select: Callable[[Any], jax.Array | None]) -> jax.Array | None:
        """Stacks one array of every block along a leading layer axis, in the order of the blocks.

        `select` takes the values that a block returned, and returns the array to stack or None. If it returns None, so
        does this method.
        """
        arrays = [array for part in self.periodic if (array := select(part)) is not None]
        if not arrays:
            return None
        whole = arrays[0] if len(arrays) == 1 else jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
        rest = [array for part in self.remaining if (array := select(part)) is not None]
        return jnp.concatenate([whole, jnp.stack(rest)]) if rest else whole

    def summed(self, select: Callable[[Any], dict[str, Mean]]) -> dict[str, Mean]:
        """Combines the weighted means of all blocks: adds the sums and the weights of means with the same name.

        `select` takes the values that a block returned, and returns its means, keyed by name.
        """
        whole = [jax.tree.map(lambda array: array.sum(0), select(part)) for part in self.periodic]
        return added(*whole, *map(select, self.remaining))


def run(
    function: BlockFunction, x: jax.Array, blocks: Any, period: int, unroll: int, first: jax.Array | int = 0
) -> tuple[jax.Array, BlockValues]:
    """Runs blocks in a loop over complete periods, and then the remaining blocks.

    Args:
      function: function that runs one block.
      x: input of the first block, [batch, length, embed].
      blocks: stacked parameters of the blocks to run.
      period: number of blocks in a period (see `Transformer.period`).
      unroll: number of blocks per iteration of the loop, rounded up to complete periods.
      first: index of the first of these blocks in the whole stack. Not 0 for a later part of the stack.

    Returns:
      The output of the last block, and the further values that `function` returns for every block.
    """
    count = depth(blocks)
    whole = count // period

    def body(x, numbered):
        number, params = numbered
        kept = []
        for kind in range(period):
            x, part = function(x, number + kind, params[kind], kind)
            kept.append(part)
        return x, tuple(kept)

    numbered = first + jnp.arange(0, whole * period, period), _periods(blocks, period, whole)
    x, kinds = jax.lax.scan(body, x, numbered, unroll=max(1, min(-(-unroll // period), whole)))
    rest = []
    if count % period:
        for number, params in list(enumerate(unstacked(blocks)))[whole * period :]:
            x, part = function(x, jnp.asarray(first + number), params, number % period)
            rest.append(part)
    return x, BlockValues(kinds, tuple(rest))


def _periods(blocks: Any, period: int, whole: int) -> list[Any]:
    """Returns the parameters of the blocks in the first `whole` periods: one tree per kind of block, whose arrays have
    a leading axis over the periods.
    """
    kinds = _kinds(blocks)
    if period == 1:
        return kinds
    if len(kinds) == 1:
        return [_strided(blocks, kind, whole * period, period) for kind in range(period)]
    return [_strided(params, 0, whole, 1) for params in kinds]


def _strided(blocks: Any, start: int, stop: int, step: int) -> Any:
    return jax.tree.map(lambda array: array[start:stop:step], blocks)


def _kinds(blocks: Any) -> list[Any]:
    """Returns a list with the stacked parameters of each kind of block. It has only one entry if the parameters of all
    kinds have the same structure and shapes.
    """
    if isinstance(blocks, dict) and all(name.isdigit() for name in blocks):
        return [blocks[str(kind)] for kind in range(len(blocks))]
    return [blocks]


def rematerialised(function: Callable[..., Any], remat: str, in_loop: bool) -> Callable[..., Any]:
    """Wraps a function that runs a block, so that the backward pass recomputes its activations instead of storing them.

    Returns the function unchanged if `remat` is `none`, unless the mesh splits positions between layers.

    Args:
      function: function to wrap. Its first argument contains the inputs that all blocks share, and its other arguments
        are those of a `BlockFunction`.
      remat: value of `Transformer.remat`.
      in_loop: whether the function is called in a loop such as `jax.lax.scan`. Otherwise, XLA must be kept from merging
        the repeated computation with the first one.

    Raises:
      InputError: If `remat` is `offload` on a CPU, which has no memory besides that of the host.
    """
    policy = REMAT_POLICIES.get(remat)
    if remat == "none":
        if sharding.current_num_parts("residual_position") == sharding.current_num_parts("query_position"):
            return function
        policy = _not_gathered
    if remat == "offload" and sharding.platform() == "cpu":
        raise InputError("transformer.remat=offload: a CPU has only the memory of its host; expected full")
    # Outside a loop, the compiler would detect the repeated computation and keep its result instead.
    return jax.checkpoint(function, prevent_cse=not in_loop, policy=policy, static_argnums=4)


def _not_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """JAX checkpoint policy that saves all values except those that a sharding constraint returned.

    Between layers, positions are sharded over the mesh axis `tensor`, and a sharding constraint gathers them as the
    input of each layer. The backward pass gathers them again instead of storing the gathered copies, which saves
    memory.
    """
    return primitive.name != "sharding_constraint"


def default_unroll(depth: int, remat: str) -> int:
    """Returns the default number of blocks per loop iteration: all if `remat` is `none` on a CPU, otherwise 1."""
    # In an unrolled loop, the compiler recomputes all blocks at once and saves no memory.
    return depth if sharding.platform() == "cpu" and remat == "none" else 1


def depth(blocks: Any) -> int:
    """Returns the number of blocks in a tree of stacked parameters."""
    return sum(len(jax.tree.leaves(kind)[0]) for kind in _kinds(blocks))


def _layer(blocks: Any, number: int) -> Any:
    return jax.tree.map(lambda array: array[number], blocks)
