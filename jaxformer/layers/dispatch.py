"""Tokens to their experts and back, on one device and over the mesh.

Three ways compute the same where nothing is dropped:

- `dropless`: rows sorted by expert, in blocks (`layers.grouped`). Over the mesh, each device gathers the tokens of
  those that hold the other experts, computes what chose its own, and the results are added up and scattered. Shapes
  are fixed, so that no distribution of tokens can fail: buffers hold the worst case, and only rows in use are computed.
- `limited`: a fixed number of slots of each row of the batch for each expert. Over the mesh the slots travel by an
  all-to-all. What is dropped depends on the row alone, and so on neither the mesh nor the micro-batch.
- `dense`: every expert computes every token; for programs whose lengths are symbols.
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
    """The experts of each token."""

    chosen: jax.Array
    """Integers [b, t, k]; the number of experts where there is no token."""
    weights: jax.Array
    """float32 [b, t, k]."""
    counted: jax.Array
    """float32 [b, t]: 1, and 0 for padding and repeated tokens, which take no slot from another."""


@flax.struct.dataclass
class Kernels:
    """The linear maps of all experts, in the type to compute in."""

    gate: jax.Array | None
    """[e, d, f]; None: without a gate."""
    up: jax.Array
    """[e, d, f]."""
    down: jax.Array
    """[e, f, d]."""
    activation: Activation = flax.struct.field(pytree_node=False)
    """As in `Mlp`."""

    @property
    def experts(self) -> int:
        """Their number."""
        return len(self.up)

    def apply(self, x: jax.Array, product) -> jax.Array:
        """The network, whose matrix products are `product(x, kernel)`."""
        up, function = product(x, self.up), activation(self.activation)
        hidden = function(up) if self.gate is None else function(product(x, self.gate)) * up
        return product(hidden, self.down)


def dense(x: jax.Array, routes: Routes, kernels: Kernels) -> jax.Array:
    """The experts' output for x [b, t, d]; every expert computes every token."""
    chosen = routes.chosen[..., None] == jnp.arange(kernels.experts)
    weights = jnp.sum(chosen * routes.weights[..., None], axis=2)
    every = jnp.broadcast_to(x, (kernels.experts, *x.shape))
    y = kernels.apply(every, lambda x, kernel: jnp.einsum("ebti,eio->ebto", x, kernel))
    return jnp.einsum("ebtd,bte->btd", y, weights.astype(x.dtype))


def limited(x: jax.Array, routes: Routes, kernels: Kernels, capacity: float) -> tuple[jax.Array, jax.Array]:
    """The experts' output for x [b, t, d], where each has a fixed number of slots in a row, and the choices dropped.

    First choices take slots before second ones, and earlier tokens before later ones (Lepikhin et al. 2021).

    Args:
      x: the tokens.
      routes: their experts.
      kernels: the experts.
      capacity: slots of an expert, as a multiple of an even share of the row's choices.

    Returns:
      [b, t, d], and the number of choices of counted tokens that no slot was left for.
    """
    (rows, length, choices), experts = routes.chosen.shape, kernels.experts
    slots = max(1, min(length, math.ceil(capacity * length * choices / experts)))
    places = jax.vmap(functools.partial(_places, experts=experts, slots=slots))
    slot, source = places(routes.chosen.swapaxes(1, 2).reshape(rows, -1), jnp.tile(routes.counted, (1, choices)))
    move = jax.vmap(grouped.move)
    inputs = move(jnp.tile(x, (1, choices, 1)), source, slot).reshape(rows, experts, slots, -1)
    inputs = sharding.constrain(sharding.constrain(inputs, "b___").swapaxes(0, 1), "eb__")

    # Gathered along the embeddings, as other kernels are.
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
    """The slot of each choice of a row, and the choice of each slot; the number of the others where there is none.

    Args:
      chosen: integers [a].
      counted: [a]; choices that count come first.
      experts: their number.
      slots: of an expert.
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
    """The experts' output for x [b, t, d]; nothing is dropped."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        flat, chosen, weights = (array.reshape(-1, array.shape[-1]) for array in (x, routes.chosen, routes.weights))
        return _chosen_output(flat, chosen, weights, kernels, kernels.experts).reshape(x.shape)
    return _on_mesh(mesh, x, routes, kernels)


def _chosen_output(x: jax.Array, chosen: jax.Array, weights: jax.Array, kernels: Kernels, experts: int) -> jax.Array:
    """The weighted sum of the outputs of those experts that a token chose among `kernels`.

    Args:
      x: [n, d].
      chosen: integers [n, k]; others than indices of `kernels` add nothing.
      weights: [n, k].
      kernels: the experts here.
      experts: the number of all experts, which says how large a group is on average.
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
    """The mesh axes that split tokens, and each axis of the kernels; None: none."""

    tokens: PartitionSpec
    """The spec of [b, t, d]."""
    experts: Any
    """The axes that split the experts."""
    width: Any
    """The axes that split their inner width."""
    rows: Any
    """The axes of the embeddings in `gate` and `up`, where they split tokens too: kernels are gathered along them, and
    gradients scattered."""
    columns: Any
    """The same in `down`."""

    @classmethod
    def of(cls, mesh: jax.sharding.AbstractMesh, x: jax.Array, kernels: Kernels) -> "_Layout":
        """The layout by the rules; the compiler gathers kernels along axes that this layout leaves out."""
        tokens = sharding.partition_spec("bt_", x.shape, mesh)
        experts, rows, width = sharding.partition_spec("edf", kernels.up.shape, mesh)
        _, other_width, columns = sharding.partition_spec("efd", kernels.down.shape, mesh)
        width = width if width == other_width else None
        free = set(_names(tokens)) - set(_names((experts, width)))
        rows, columns = (spec if free.issuperset(_names((spec,))) else None for spec in (rows, columns))
        return cls(tokens, experts, width, rows, columns)

    @property
    def held(self) -> tuple[str, ...]:
        """The mesh axes along which devices hold other parts of the experts."""
        return _names((self.experts, self.width))

    def specs(self, kernels: Kernels) -> Kernels:
        """The spec of each kernel."""
        up = PartitionSpec(self.experts, self.rows, self.width)
        down = PartitionSpec(self.experts, self.width, self.columns)
        return dataclasses.replace(kernels, gate=None if kernels.gate is None else up, up=up, down=down)


def _on_mesh(mesh: jax.sharding.AbstractMesh, x: jax.Array, routes: Routes, kernels: Kernels) -> jax.Array:
    """`_chosen_output` of each device's tokens and parts of kernels: the compiler cannot split a sort by itself.

    Mesh axes that split tokens and experts (or the experts' width) alike gather the tokens first, and scatter the sum
    of the outputs; others add them up.
    """
    layout, experts = _Layout.of(mesh, x, kernels), kernels.experts
    tokens = _names(layout.tokens)
    shared, added = (tuple(name for name in layout.held if (name in tokens) == both) for both in (True, False))
    varying = tuple(dict.fromkeys((*tokens, *layout.held)))

    def whole(kernel, axes, axis):
        """The kernel along the embeddings, where a gradient from all tokens will be summed."""
        return _vary(_gathered(kernel, axes, axis), varying, (*layout.held, *_names((axes,))))

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
        if names := _names((layout.experts,)):
            chosen = chosen - jax.lax.axis_index(names) * kernels.experts
        y = _chosen_output(x, chosen, weights, kernels, experts)
        if shared:
            y = jax.lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True)
        return (jax.lax.psum(y, added) if added else y).reshape(shape)

    of_tokens = (layout.tokens,) * 3
    split = jax.shard_map(compute, in_specs=(*of_tokens, layout.specs(kernels)), out_specs=layout.tokens)
    return split(x, routes.chosen, routes.weights, kernels)


def _names(spec) -> tuple[str, ...]:
    """The mesh axes of a spec."""
    return tuple(name for part in spec if part for name in ((part,) if isinstance(part, str) else part))


def _gathered(array: jax.Array, names, axis: int) -> jax.Array:
    return jax.lax.all_gather(array, names, axis=axis, tiled=True) if names else array


def _vary(array: jax.Array, names: tuple[str, ...], known: tuple[str, ...]) -> jax.Array:
    """The array as one that may differ along the mesh axes `names`; that it does along `known` is known.

    Its gradient is summed over the others.
    """
    missing = tuple(name for name in names if name not in known)
    return jax.lax.pcast(array, missing, to="varying") if missing else array
