"""Ring attention: attention over sequences whose positions are split over several devices (Liu et al. 2023).

Each device has a block of the queries, keys and values of its sequences. Blocks of keys and values travel around the
ring of devices, and each device accumulates the attention of its queries to every block that arrives, with a running
maximum as in FlashAttention (Dao et al. 2022). So no device holds all keys of a sequence, and scores are computed for a
limited number of queries at a time. The backward pass sends the blocks around again, together with their gradients.

Under a causal mask, a device would skip all blocks of later positions, and the device with the last positions would
compute the longest. So devices first exchange half blocks, such that each has one from the start and one from the end
of the sequence (Grattafiori et al. 2024, §3.3.2), and computes the same number of scores as the others.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.layers import kernels
from jaxformer.layers.masks import OF_KEYS, OF_QUERIES, Mask
from jaxformer.layers.ring_layout import RingLayout
from jaxformer.parallel import sharding

BLOCK = 512
"""Maximum number of queries whose attention scores with a block of keys (the keys of one device) are in memory at the
same time.
"""


def ring(query_bthk, key_bgsk, value_bgsk, mask: Mask | None, bias, scale: float) -> jax.Array:
    """Computes ring attention on a mesh that splits the positions of queries and keys into equal parts.

    In the shapes, b is the batch size, t and s the numbers of queries and keys, h and g the numbers of query and key
    heads, and k the head size.

    Args:
      query_bthk: queries, [b, t, h, k].
      key_bgsk: keys, [b, g, s, k]. s may differ from t, as in cross-attention.
      value_bgsk: values, [b, g, s, k].
      mask: mask, or None for full attention. A device skips blocks of keys that a causal mask or a window hides from
        all its queries. If the mask is causal and has a window, it does not receive them either. If the mask is causal
        and has no window, all devices compute the same number of scores (see `RingLayout.balanced`).
      bias: bias to add to the scores, float32 [h, t, s] or [b, h, t, s], or None.
      scale: factor by which the products of queries and keys are multiplied.

    Returns:
      Attention output, [b, t, h, k].
    """
    mesh = jax.sharding.get_abstract_mesh()
    key_bgsk, value_bgsk = kernels.with_own_heads(query_bthk, key_bgsk, value_bgsk)
    if bias is not None and bias.ndim == 3:
        bias = bias[None]
    spec = sharding.partition_spec("bthk", query_bthk.shape, mesh)
    groups = sharding.partition_spec("bgsk", key_bgsk.shape, mesh)[1]
    names, num_devices = sharding.names(spec[1:2]), sharding.parts(spec[1], mesh)
    blocks = query_bthk.shape[1] // num_devices, key_bgsk.shape[2] // num_devices
    in_order = mask is not None and mask.in_order and blocks[0] == blocks[1]
    window = mask.window if mask is not None and mask.aligned else None
    steps = num_devices
    if in_order and window is not None:
        steps = min(num_devices, 1 + -(-(window - 1) // blocks[0]))
    balanced = in_order and window is None and bias is None and blocks[0] % 2 == 0
    layout = RingLayout(names, num_devices, steps, spec[0], spec[2], groups, in_order, window, balanced, scale)
    if mask is None or not balanced:
        return _attend(layout, query_bthk, key_bgsk, value_bgsk, bias, mask)
    query_bthk, key_bgsk, value_bgsk, mask = layout.exchange(query_bthk, key_bgsk, value_bgsk, mask)
    return layout.restore(_attend(layout, query_bthk, key_bgsk, value_bgsk, None, mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout: RingLayout, query, key, value, bias, mask):
    return _forward(layout, query, key, value, bias, mask)[0]


def _forward(layout: RingLayout, query, key, value, bias, mask):
    """Computes ring attention. Returns the output, and a tuple of what the backward pass needs: the inputs, the output,
    and for each query its largest score and the sum of exp(score - largest score).
    """

    def local(query, key, value, bias, mask):
        length = key.shape[2] // layout.chunks

        def update(sums, _, of_queries, block, starts):
            key, value = block

            def chunk(_, part):
                return None, _added(part, key, value, layout.scale)

            bias_of_block = _queries_first(_columns(bias, starts, length))
            parts = {"sums": sums, "bias": bias_of_block, **of_queries}
            chunked = functools.partial(_with_mask, chunk, _keys_of(mask, starts, length))
            return _in_chunks(chunked, None, parts)[1], ()

        of_queries = {"query": query, "mask": _of_queries(mask)}

        def body(carry, number):
            sums, block = carry
            passed = layout.sent(block)  # Travels while this block is computed.
            sums, _ = layout.where_seen(number, length, update, (sums, ()), (of_queries, block))
            return (sums, passed), None

        start = {
            "mixed": jnp.zeros(query.shape, jnp.float32),
            "largest": jnp.full(query.shape[:3], -jnp.inf, jnp.float32),
            "total": jnp.zeros(query.shape[:3], jnp.float32),
        }
        block = key, value
        passed = layout.sent(block) if layout.steps > 1 else block
        sums, _ = update(start, (), of_queries, block, layout.starts(layout.source(0), length))
        if layout.steps > 1:
            (sums, block), _ = jax.lax.scan(body, (sums, passed), jnp.arange(1, layout.steps - 1))
            sums, _ = layout.where_seen(layout.steps - 1, length, update, (sums, ()), (of_queries, block))
        output = (sums["mixed"] / sums["total"][..., None]).astype(value.dtype)
        return output, sums["largest"], sums["total"]

    specs = layout.queries, layout.keys, layout.keys, layout.bias(bias), layout.mask(mask)
    split = jax.shard_map(local, in_specs=specs, out_specs=(layout.queries,) * 3, check_vma=False)
    output, largest, total = split(query, key, value, bias, mask)
    return output, ((query, key, value, bias, mask), output, largest, total)


def _backward(layout: RingLayout, kept, cotangent):
    (query, key, value, bias, mask), output, largest, total = kept

    def local(query, key, value, bias, mask, kept):
        length = key.shape[2] // layout.chunks

        def update(dquery, of_block, of_queries, block, starts):
            key, value = block

            def chunk(of_block, part):
                part, gradient = _gradients(part, key, value, layout.scale)
                return jax.tree.map(jnp.add, of_block, gradient), part

            bias_of_block = _queries_first(_columns(bias, starts, length))
            parts = {"dquery": dquery, "bias": bias_of_block, **of_queries}
            chunked = functools.partial(_with_mask, chunk, _keys_of(mask, starts, length))
            dblock, parts = _in_chunks(chunked, of_block["block"], parts)
            return parts["dquery"], {"block": dblock, "bias": _queries_last(parts["dbias"])}

        of_queries = {"query": query, "mask": _of_queries(mask), **kept}

        def step(dquery, dbias, number, block, dblock, own=False):
            """Adds the gradients of one block of keys: in step 0 that of this device (`own`), which no mask hides."""
            starts = layout.starts(layout.source(number), length)
            none = None if bias is None else jnp.zeros((*bias.shape[:3], length), jnp.float32)
            carry, fixed = (dquery, {"block": dblock, "bias": none}), (of_queries, block)
            if own:
                dquery, of_block = update(*carry, *fixed, starts)
            else:
                dquery, of_block = layout.where_seen(number, length, update, carry, fixed)
            if dbias is not None:
                dbias = jax.lax.dynamic_update_slice_in_dim(dbias, of_block["bias"], starts[0], axis=3)
            return dquery, dbias, of_block["block"]

        def body(carry, number):
            dquery, dbias, block, dblock = carry
            passed = layout.sent(block)
            dquery, dbias, dblock = step(dquery, dbias, number, block, dblock)
            return (dquery, dbias, passed, layout.sent(dblock)), None

        zeros = tuple(jnp.zeros(array.shape, jnp.float32) for array in (query, key, value))
        dbias, block = None if bias is None else jnp.zeros(bias.shape, jnp.float32), (key, value)
        passed = layout.sent(block) if layout.steps > 1 else block
        dquery, dbias, dblock = step(zeros[0], dbias, 0, block, zeros[1:], own=True)
        if layout.steps > 1:
            carry = dquery, dbias, passed, layout.sent(dblock)
            (dquery, dbias, block, dblock), _ = jax.lax.scan(body, carry, jnp.arange(1, layout.steps - 1))
            dquery, dbias, dblock = step(dquery, dbias, layout.steps - 1, block, dblock)
            dblock = layout.sent(dblock, 1 - layout.steps)  # The gradients return to the devices of their keys.
        if shared:
            dbias = jax.lax.psum(dbias, shared)
        dkey, dvalue = dblock
        return dquery.astype(query.dtype), dkey.astype(key.dtype), dvalue.astype(value.dtype), dbias

    shared = () if bias is None else layout.shared(bias)
    # The gradient of a score is the weight times the difference of the gradient of the weight and this mean of them.
    mean = jnp.sum(cotangent.astype(jnp.float32) * output.astype(jnp.float32), axis=-1)
    kept = {"cotangent": cotangent, "mean": mean, "largest": largest, "total": total}
    of_keys, of_bias = layout.keys, layout.bias(bias)
    split = jax.shard_map(
        local,
        in_specs=(layout.queries, of_keys, of_keys, of_bias, layout.mask(mask), dict.fromkeys(kept, layout.queries)),
        out_specs=(layout.queries, of_keys, of_keys, of_bias),
        check_vma=False,
    )
    return *split(query, key, value, bias, mask, kept), None


_attend.defvjp(_forward, _backward)


def _added(part: Mapping[str, Any], key, value, scale: float) -> dict[str, jax.Array]:
    """Adds the attention of some queries to one block of keys to the running sums of these queries (online softmax).
    Returns the new `sums`.

    Args:
      part: dict with the queries `query` [b, t, h, k], their `bias` and `allowed` keys (arrays or None), and `sums`: a
        dict with the `largest` score so far, the `total` of the weights exp(score - largest), both [b, t, h], and
        `mixed`, the sum of the values multiplied by these weights, [b, t, h, k].
      key: block of keys, [b, g, s, k].
      value: block of values, [b, g, s, k].
      scale: factor by which the products of queries and keys are multiplied.
    """
    sums, scores = part["sums"], _scores(part, key, scale)
    before = sums["largest"].swapaxes(1, 2)
    largest = jnp.maximum(before, scores.max(-1))
    weights = jnp.exp(scores - largest[..., None])
    shrunk = jnp.exp(before - largest).swapaxes(1, 2)
    mixed = jnp.einsum(
        "bgrts,bgsk->btgrk", _grouped(weights.astype(value.dtype), key), value, preferred_element_type=jnp.float32
    )
    return {
        "mixed": sums["mixed"] * shrunk[..., None] + mixed.reshape(sums["mixed"].shape),
        "largest": largest.swapaxes(1, 2),
        "total": sums["total"] * shrunk + weights.sum(-1).swapaxes(1, 2),
    }


def _gradients(part: Mapping[str, Any], key, value, scale: float):
    """Computes gradients for some queries and one block of keys. Returns a dict with `dquery`, the sum of the gradients
    of the queries so far, and `dbias`, the gradient of the bias; and a tuple with the gradients of the keys and values
    of this block.

    Args:
      part: dict with `query`, `bias` and `allowed` as in `_added`, the final `largest` and `total`, the gradient
        `cotangent` of the output [b, t, h, k], its dot product `mean` with the output [b, t, h], and the sum `dquery`
        of the gradients of the queries before this block.
      key: block of keys, [b, g, s, k].
      value: block of values, [b, g, s, k].
      scale: factor by which the products of queries and keys are multiplied.
    """
    query, cotangent = part["query"], part["cotangent"]
    batch, length, _, size = query.shape
    groups = key.shape[1]
    largest, total, mean = (part[name].swapaxes(1, 2)[..., None] for name in ("largest", "total", "mean"))
    weights = jnp.exp(_scores(part, key, scale) - largest) / total
    by_group = cotangent.reshape(batch, length, groups, -1, size)
    dweights = jnp.einsum("btgrk,bgsk->bgrts", by_group, value, preferred_element_type=jnp.float32)
    dscores = weights * (dweights.reshape(weights.shape) - mean)
    if part["allowed"] is not None:
        dscores = jnp.where(part["allowed"], dscores, 0)
    dbias = part["bias"]
    if dbias is not None:
        dbias = _queries_first(dscores.sum(0, keepdims=True) if dbias.shape[0] == 1 else dscores)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    rounded = _grouped(dscores.astype(key.dtype), key)
    dquery = product("bgrts,bgsk->btgrk", rounded, key).reshape(query.shape) * scale
    scaled = (query * scale).reshape(by_group.shape)
    dkey = product("bgrts,btgrk->bgsk", rounded, scaled)
    dvalue = product("bgrts,btgrk->bgsk", _grouped(weights.astype(value.dtype), key), by_group)
    return {"dquery": part["dquery"] + dquery, "dbias": dbias}, (dkey, dvalue)


def _scores(part: Mapping[str, Any], key, scale: float) -> jax.Array:
    """Returns the attention scores of some queries (`part`, see `_added`) with a block of keys, float32 [b, h, t, s].
    Adds the bias, and sets the scores of keys that are not allowed to the lowest float32 number.
    """
    query = part["query"]
    batch, length, heads, size = query.shape
    grouped = (query * scale).reshape(batch, length, key.shape[1], -1, size)
    scores = jnp.einsum("btgrk,bgsk->bgrts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, -1)
    if part["bias"] is not None:
        scores = scores + part["bias"].swapaxes(1, 2)
    if part["allowed"] is not None:
        scores = jnp.where(part["allowed"], scores, jnp.finfo(jnp.float32).min)
    return scores


def _grouped(array_bhts: jax.Array, key: jax.Array) -> jax.Array:
    """Splits the axis of query heads into groups that share a key head: reshapes an array [b, h, t, s] to [b, g, h / g,
    t, s], where g is the number of heads in `key`.
    """
    batch, _, length, keys = array_bhts.shape
    return array_bhts.reshape(batch, key.shape[1], -1, length, keys)


def _in_chunks(function, carry: Any, parts: Any) -> tuple[Any, Any]:
    """Calls `function(carry, chunk)` for one chunk of queries after the other, to limit memory. Returns the last carry,
    and the results of all chunks concatenated along axis 1.

    Args:
      function: function that returns the next carry, and a tree of arrays whose axis 1 is the queries of the chunk.
      carry: first value of the carry.
      parts: tree of arrays whose axis 1 is the queries. A chunk contains a slice of each array along this axis.
    """
    length = jax.tree.leaves(parts)[0].shape[1]
    size = max(size for size in range(1, min(length, BLOCK) + 1) if length % size == 0)
    if size == length or size < BLOCK // 8:  # A length with no useful divisor, such as a prime, is one chunk.
        return function(carry, parts)

    def split(array):
        return jnp.moveaxis(array.reshape(array.shape[0], -1, size, *array.shape[2:]), 1, 0)

    def join(array):
        return jnp.moveaxis(array, 0, 1).reshape(array.shape[1], length, *array.shape[3:])

    carry, results = jax.lax.scan(function, carry, jax.tree.map(split, parts))
    return carry, jax.tree.map(join, results)


def _with_mask(function, mask: Mask | None, carry: Any, part: dict[str, Any]) -> tuple[Any, Any]:
    """Calls `function(carry, part)` for a chunk of queries, and returns its result. Before the call, the entry
    `allowed` is added to the dict `part`: a boolean array, True if a query of the chunk may attend to a key of the
    block, or None if all may.
    """
    seen = None if mask is None else mask.with_queries(part["mask"]).dense()
    return function(carry, {**part, "allowed": seen})


def _of_queries(mask: Mask | None) -> dict[str, jax.Array | None]:
    return {} if mask is None else {name: getattr(mask, name) for name in OF_QUERIES}


def _keys_of(mask: Mask | None, starts: Sequence[jax.Array], length: int) -> Mask | None:
    """Returns the mask for some of the keys: slices of `length` keys, which start at the indices `starts`. None if
    there is no mask.
    """
    if mask is None:
        return None
    arrays = {name: getattr(mask, name) for name in OF_KEYS}
    return dataclasses.replace(mask, **jax.tree.map(lambda array: _slices(array, starts, length, axis=1), arrays))


def _columns(bias: jax.Array | None, starts: Sequence[jax.Array], length: int) -> jax.Array | None:
    """Returns the bias for the same slices of keys as `_keys_of`. None if there is no bias."""
    return None if bias is None else _slices(bias, starts, length, axis=3)


def _slices(array: jax.Array, starts: Sequence[jax.Array], length: int, axis: int) -> jax.Array:
    several = [jax.lax.dynamic_slice_in_dim(array, start, length, axis) for start in starts]
    return several[0] if len(several) == 1 else jnp.concatenate(several, axis)


def _queries_first(bias_bhts: jax.Array | None) -> jax.Array | None:
    """Swaps the axes of heads and queries of a bias: [b, h, t, s] to [b, t, h, s]. `_in_chunks` requires that queries
    are axis 1.
    """
    return None if bias_bhts is None else bias_bhts.swapaxes(1, 2)


_queries_last = _queries_first
