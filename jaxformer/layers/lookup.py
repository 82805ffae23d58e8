"""Lookup of rows in a table that is sharded over the device mesh, such as token embeddings."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxformer.parallel import sharding
from jaxformer.parallel.parameter_shards import parameter_spec


def lookup(table_vd: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the rows of a table for token ids, [batch, length, embed] in the type of the table.

    If the mesh splits the table, its gradient is reduced and scattered: each device receives only its part. The
    compiler would reduce the whole table on all devices, which sends twice the bytes and takes more memory.

    Args:
      table_vd: the table, [vocab, embed].
      tokens: token ids, integers [batch, length].
    """
    return _scattered(table_vd, tokens) if _scatters(table_vd.shape, tokens.shape) else _rows(table_vd, tokens)


def _rows(table_vd, tokens):
    # The lookup needs whole rows. Gathering them from a table that is split along the width would make the compiler
    # rebuild the table for every use. The tensor axis splits the vocabulary.
    return sharding.constrain(jnp.take(sharding.constrain(table_vd, "v_"), tokens, axis=0), "brd")


def _scatters(table: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    """Returns whether the current mesh splits the table, and only over devices that have different tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or any(map(jax.export.is_symbolic_dim, tokens)):
        return False
    of_table = sharding.names(parameter_spec("vd", table, mesh))
    return bool(of_table) and set(of_table) <= set(sharding.names(sharding.partition_spec("br", tokens, mesh)))


@jax.custom_vjp
def _scattered(table_vd: jax.Array, tokens: jax.Array) -> jax.Array:
    return _rows(table_vd, tokens)


def _forward(table_vd, tokens):
    return _rows(table_vd, tokens), (table_vd, tokens)


def _backward(inputs, gradient_brd):
    """Returns the gradient of the table, split as the table is.

    If positions and the vocabulary are split over the same devices (tensor parallelism), each device either gathers the
    gradients of all positions of its batch rows and adds up those of its own part of the vocabulary, or adds up the
    gradients of its own positions for the whole vocabulary, which are then reduced and scattered. It sends the smaller
    of the two arrays.
    """
    table, tokens = inputs
    mesh = jax.sharding.get_abstract_mesh()
    rows, positions = sharding.partition_spec("br", tokens.shape, mesh)
    spec = parameter_spec("vd", table.shape, mesh)
    of_tokens, of_vocab = sharding.names((rows, positions)), sharding.names(spec[:1])
    of_own_rows = of_vocab if of_vocab == sharding.names((positions,))[-len(of_vocab) :] else ()
    if tokens.size // math.prod(mesh.shape[name] for name in of_tokens if name not in of_own_rows) > len(table):
        of_own_rows = ()
    size = len(table) // math.prod(mesh.shape[name] for name in of_own_rows)
    summed = tuple(name for name in of_tokens if name not in sharding.names(spec))
    kept = tuple(name for name in sharding.names((positions,)) if name not in of_own_rows)

    def local(tokens, gradient_brd):
        tokens = jnp.where(tokens < 0, tokens + len(table), tokens)  # As `jnp.take` reads them.
        if of_own_rows:
            gradient_brd = jax.lax.all_gather(gradient_brd, of_own_rows, axis=1, tiled=True)
            tokens = tokens - size * jax.lax.axis_index(of_own_rows)
        index = jnp.where(tokens < 0, size, tokens)  # Rows of other devices, which JAX would count from the end.
        part = jnp.zeros((size, table.shape[1]), gradient_brd.dtype).at[index].add(gradient_brd, mode="drop")
        for dimension, entry in enumerate(spec):
            for name in sharding.names((entry,)):
                if name not in of_own_rows:
                    part = jax.lax.psum_scatter(part, name, scatter_dimension=dimension, tiled=True)
        return jax.lax.psum(part, summed) if summed else part

    specs = PartitionSpec(rows, kept), PartitionSpec(rows, positions, None)
    split = jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)
    return split(tokens, gradient_brd).astype(table.dtype), None


_scattered.defvjp(_forward, _backward)
