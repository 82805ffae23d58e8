"""Sends tokens to the experts that a router chose for them, computes the experts, and combines their outputs.

The router chooses k experts for each token. Each of these k (token, expert) pairs is a choice. There are three
implementations, which give the same result if no choice is dropped:

- `dropless`: sorts tokens by expert into blocks (see `layers.grouped`). On a mesh, each device gathers the tokens of
  the devices with other experts, computes its experts for the tokens that chose them, and the outputs are summed and
  scattered. Buffers have a fixed size for the worst case, but only their used part is computed.
- `limited`: gives each expert a fixed number of slots per batch row, and drops choices for which no slot is left. On a
  mesh, slots are exchanged by an all-to-all. Which choices are dropped depends only on the batch row, and not on the
  mesh or the micro-batch.
- `dense`: computes every expert for every token. Used in exported programs with symbolic lengths.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxformer.layers import grouped
from jaxformer.layers.mlp import Activation, activation
from jaxformer.parallel import sharding


@flax.struct.dataclass
class Routes:
    """Result of the router: the experts chosen for each token, and the weights of their outputs."""

    chosen: jax.Array
    """Indices of the experts chosen for each token, integers [batch, length, choices]. At padding, the index is the
    number of experts, which is out of range, so that no expert is computed.
    """
    weights: jax.Array
    """Weights of the chosen experts' outputs, float32 [batch, length, choices]."""
    counted: jax.Array
    """1 for tokens to count, 0 for padding and for repetitions of a token, float32 [batch, length]. With limited slots,
    tokens marked 0 never take a slot that a counted token needs.
    """


@flax.struct.dataclass
class Kernels:
    """Kernels of the linear layers of all experts, in the data type of the computation."""

    gate: jax.Array | None
    """Kernels of the gate layers, [experts, embed, mlp]. None if experts are not gated."""
    up: jax.Array
    """Kernels of the first linear layers, [experts, embed, mlp]."""
    down: jax.Array
    """Kernels of the last linear layers, [experts, mlp, embed]."""
    activation: Activation = flax.struct.field(pytree_node=False)
    """Activation function of the experts. See `Mlp.activation`."""

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.up)

    def apply(self, x: jax.Array, product) -> jax.Array:
        """Computes the outputs of the experts for their tokens.

        Args:
          x: vectors of the tokens, grouped by expert in any layout that `product` accepts.
          product: function (x, kernel) that multiplies the tokens of each expert by the kernel of that expert.
        """
        up, function = product(x, self.up), activation(self.activation)
        hidden = function(up) if self.gate is None else function(product(x, self.gate)) * up
        return product(hidden, self.down)


def dense(x: jax.Array, routes: Routes, kernels: Kernels) -> jax.Array:
    """Returns the weighted sum of the outputs of each token's chosen experts, [batch, length, embed], for x of the same
    shape. Computes all experts for all tokens.
    """
    chosen = routes.chosen[..., None] == jnp.arange(kernels.experts)
    weights = jnp.sum(chosen * routes.weights[..., None], axis=2)
    every = jnp.broadcast_to(x, (kernels.experts, *x.shape))
    y = kernels.apply(every, lambda x, kernel: jnp.einsum("ebti,eio->ebto", x, kernel))
    return jnp.einsum("ebtd,bte->btd", y, weights.astype(x.dtype))


def limited(x: jax.Array, routes: Routes, kernels: Kernels, capacity: float) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of the outputs of each token's chosen experts. Each expert has a limited number of slots
    per batch row, and the choices (pairs of token and expert) for which no slot is left are dropped.

    The most probable expert of each token is assigned before the second one, and earlier tokens before later tokens
    (Lepikhin et al. 2021).

    Args:
      x: tokens, [batch, length, embed].
      routes: experts that the router chose for each token.
      kernels: kernels of the experts.
      capacity: number of slots per expert, as a multiple of the number of choices per expert if they are evenly
        distributed.

    Returns:
      Output, [batch, length, embed], and the number of dropped choices of real tokens.
    """
    (rows, length, choices), experts = routes.chosen.shape, kernels.experts
    slots = max(1, min(length, math.ceil(capacity * length * choices / experts)))
    places = jax.vmap(functools.partial(_places, experts=experts, slots=slots))
    slot, source = places(routes.chosen.swapaxes(1, 2).reshape(rows, -1), jnp.tile(routes.counted, (1, choices)))
    move = jax.vmap(grouped.move)
    inputs = move(jnp.tile(x, (1, choices, 1)), source, slot).reshape(rows, experts, slots, -1)
    inputs = sharding.constrain(sharding.constrain(inputs, "b___").swapaxes(0, 1), "eb__")

    # Gathers the kernels along the embedding dimension, as for other linear layers.
    kernels = dataclasses.replace(
        kernels,
        gate=None if kernels.gate is None else sharding.constrain(kernels.gate, "e_f"),
        up=sharding.constrain(kernels.up, "e_f"),
        down=sharding.constrain(kernels.down, "ef_"),
    )
    outputs = kernels.apply(inputs, lambda x, kernel: jnp.einsum("ebsi,eio->ebso", x, kernel))
    outputs = sharding.constrain(outputs, "eb__").swapaxes(0, 1)
    outputs = sharding.constrain(outputs, "b___").reshape(rows, experts * slots, -1)
    y = move(outputs, slot, source).reshape(rows, choices, length, -1)
    y = jnp.einsum("bktd,btk->btd", y, routes.weights.astype(x.dtype))
    left_out = (slot == experts * slots).reshape(rows, choices, length) * routes.counted[:, None]
    return y, jnp.sum(left_out)


def _places(chosen: jax.Array, counted: jax.Array, experts: int, slots: int) -> tuple[jax.Array, jax.Array]:
    """Assigns the choices in one batch row to slots. A choice is a pair of a token and one of its chosen experts. Each
    expert has a limited number of slots.

    Args:
      chosen: expert of each choice, integers [choices].
      counted: whether each choice belongs to a real token, [choices]. Choices of real tokens take slots first.
      experts: number of experts.
      slots: number of slots per expert.

    Returns:
      The slot of each choice, integers [choices], or the total number of slots if the choice is dropped. The choice in
      each slot, integers [experts · slots], or the number of choices if the slot is empty.
    """
    order = jnp.argsort(2 * chosen + (counted == 0), stable=True)
    counts = jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0)
    firsts = jnp.cumsum(counts) - counts
    ordered = chosen[order]
    rank = jnp.arange(len(chosen)) - jnp.append(firsts, 0)[ordered]
    kept = (ordered < experts) & (rank < slots)
    place = jnp.where(kept, ordered * slots + rank, experts * slots)
    slot = jnp.zeros_like(place).at[order].set(place, unique_indices=True)
    of_slot = jnp.arange(slots)[None]
    source = order[jnp.minimum(firsts[:, None] + of_slot, len(chosen) - 1)]
    source = jnp.where(of_slot < counts[:, None], source, len(chosen))
    return slot, source.reshape(-1)


def dropless(x: jax.Array, routes: Routes, kernels: Kernels) -> jax.Array:
    """Returns the weighted sum of the outputs of each token's chosen experts, [batch, length, embed], for x of the same
    shape. No choice of an expert is dropped, however many tokens choose it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        flat, chosen, weights = (array.reshape(-1, array.shape[-1]) for array in (x, routes.chosen, routes.weights))
        return _chosen_output(flat, chosen, weights, kernels, kernels.experts).reshape(x.shape)
    return _on_mesh(mesh, x, routes, kernels)


def _chosen_output(x: jax.Array, chosen: jax.Array, weights: jax.Array, kernels: Kernels, experts: int) -> jax.Array:
    """Returns for each token the weighted sum of the outputs of its chosen experts, [tokens, embed]. Only the experts
    in `kernels`, which are those of this device, are computed.

    Args:
      x: tokens, [tokens, embed].
      chosen: indices of the chosen experts, integers [tokens, choices]. Experts that are not in `kernels` contribute 0.
      weights: weights of the chosen experts' outputs, [tokens, choices].
      kernels: kernels of the experts to compute.
      experts: number of experts on all devices, which determines the average number of tokens per expert.
    """
    (count, choices), here = chosen.shape, kernels.experts
    group = chosen.reshape(-1)
    group = jnp.where((group >= 0) & (group < here), group, here)
    groups = grouped.arrange(group, here, grouped.block_size(count * choices, experts))
    rows = grouped.move(jnp.repeat(x, choices, axis=0), groups.row, groups.slot)
    y = kernels.apply(rows, lambda x, kernel: grouped.grouped_dot(x, kernel, groups))
    y = grouped.move(y, groups.slot, groups.row).reshape(count, choices, -1)
    return jnp.einsum("nkd,nk->nd", y, weights.astype(x.dtype))


class _Layout(NamedTuple):
    """How tokens and expert kernels are sharded: for each of their dimensions, the mesh axes that it is split across,
    or None if it is not split.
    """

    tokens: PartitionSpec
    """Partition spec of tokens [batch, length, embed]."""
    experts: Any
    """Mesh axes that the experts are split across, or None."""
    width: Any
    """Mesh axes that the inner width of the experts is split across, or None."""
    rows: Any
    """Mesh axes that both the tokens and the embedding dimension of the kernels `gate` and `up` are split across. The
    kernels are gathered along these axes, and their gradients are summed and split again.
    """
    columns: Any
    """Mesh axes that both the tokens and the embedding dimension of the kernel `down` are split across. Handled like
    `rows`.
    """

    @classmethod
    def of(cls, mesh: jax.sharding.AbstractMesh, x: jax.Array, kernels: Kernels) -> "_Layout":
        """Creates the layout of the tokens `x` and the kernels from the sharding rules of the mesh. Along mesh axes
        that are not in the layout, the compiler gathers the kernels.
        """
        tokens = sharding.partition_spec("bt_", x.shape, mesh)
        experts, rows, width = sharding.partition_spec("edf", kernels.up.shape, mesh)
        _, other_width, columns = sharding.partition_spec("efd", kernels.down.shape, mesh)
        width = width if width == other_width else None
        free = set(sharding.names(tokens)) - set(sharding.names((experts, width)))
        rows, columns = (spec if free.issuperset(sharding.names((spec,))) else None for spec in (rows, columns))
        return cls(tokens, experts, width, rows, columns)

    @property
    def expert_mesh_axes(self) -> tuple[str, ...]:
        """Mesh axes along which devices have different experts or different slices of the experts' inner width."""
        return sharding.names((self.experts, self.width))

    def specs(self, kernels: Kernels) -> Kernels:
        """Returns a `Kernels` object with the partition spec of each kernel in place of the kernel."""
        up = PartitionSpec(self.experts, self.rows, self.width)
        down = PartitionSpec(self.experts, self.width, self.columns)
        return dataclasses.replace(kernels, gate=None if kernels.gate is None else up, up=up, down=down)


def _on_mesh(mesh: jax.sharding.AbstractMesh, x: jax.Array, routes: Routes, kernels: Kernels) -> jax.Array:
    """Computes `dropless` on a mesh of several devices: runs `_chosen_output` on each device with its shards of tokens
    and kernels.

    This uses `shard_map` because the compiler cannot partition a sort. If tokens and experts (or their inner width) are
    split across the same mesh axis, the tokens are gathered along it, and the outputs are summed and split again. Along
    other mesh axes of the experts, outputs are only summed.
    """
    layout, experts = _Layout.of(mesh, x, kernels), kernels.experts
    tokens = sharding.names(layout.tokens)
    of_experts = layout.expert_mesh_axes
    shared, added = (tuple(name for name in of_experts if (name in tokens) == both) for both in (True, False))
    varying = tuple(dict.fromkeys((*tokens, *of_experts)))

    def whole(kernel, axes, axis):
        """All-gathers a kernel whose dimension `axis` is sharded across the mesh axes `axes`. In the backward pass, the
        gradients that the devices compute from their own tokens are summed over these devices and sharded again.
        """
        return _vary(_gathered(kernel, axes, axis), varying, (*of_experts, *sharding.names((axes,))))

    def compute(x, chosen, weights, kernels):
        kernels = dataclasses.replace(
            kernels,
            gate=None if kernels.gate is None else whole(kernels.gate, layout.rows, 1),
            up=whole(kernels.up, layout.rows, 1),
            down=whole(kernels.down, layout.columns, 2),
        )
        shape = x.shape
        flat = (array.reshape(-1, array.shape[-1]) for array in (x, chosen, weights))
        x, chosen, weights = (_vary(_gathered(array, shared, 0), varying, tokens) for array in flat)
        if names := sharding.names((layout.experts,)):
            chosen = chosen - jax.lax.axis_index(names) * kernels.experts
        y = _chosen_output(x, chosen, weights, kernels, experts)
        if shared:
            y = jax.lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True)
        return (jax.lax.psum(y, added) if added else y).reshape(shape)

    of_tokens = (layout.tokens,) * 3
    split = jax.shard_map(compute, in_specs=(*of_tokens, layout.specs(kernels)), out_specs=layout.tokens)
    return split(x, routes.chosen, routes.weights, kernels)


def _gathered(array: jax.Array, names, axis: int) -> jax.Array:
    return jax.lax.all_gather(array, names, axis=axis, tiled=True) if names else array


def _vary(array: jax.Array, names: tuple[str, ...], known: tuple[str, ...]) -> jax.Array:
    """Marks an array inside `shard_map` as having different values along the mesh axes `names`.

    Args:
      array: the array.
      names: mesh axes along which the result varies.
      known: mesh axes along which the array already varies. The gradient is summed over the other axes in `names`.
    """
    missing = tuple(name for name in names if name not in known)
    return jax.lax.pcast(array, missing, to="varying") if missing else array
