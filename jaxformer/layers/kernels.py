"""Chooses the implementation of attention, and calls the kernels that do not store all attention scores: splash
attention on TPU, and cuDNN flash attention on GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.errors import InputError
from jaxformer.layers.masks import Mask
from jaxformer.parallel import sharding

Kernel = Literal["auto", "blocks", "splash", "cudnn", "ring"]
"""Implementation of attention. `auto` selects `splash` on TPU, `cudnn` on GPU, and `blocks` (blocks of queries in plain
JAX) on CPU or if the platform's kernel does not support the layer. If the mesh axis `sequence` divides sequences among
devices, `auto` selects `splash`, or `ring` if splash attention is not supported. `ring` sends keys from device to
device. The other implementations gather all keys of a sequence on each device.
"""

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
"""Maps each attention kernel (`splash`, `cudnn`) to the platform that it runs on."""
DROPPED = "it does not support dropout of the weights; expected transformer.attention_dropout=0"
SHORTEST = 256
"""Minimum number of queries and of keys for which an attention kernel is used. For shorter inputs, attention is
computed in plain JAX, because a kernel would save little.
"""
SAVED = "attention"
"""Checkpoint name (see `jax.ad_checkpoint.checkpoint_name`) of the arrays that splash attention saves for the backward
pass.
"""
MATRIX = 2**26
"""Maximum number of entries (queries times keys) of a mask for cuDNN. An entry takes two bytes per batch row. If batch
rows contain several segments and the mask would be larger, attention is computed in plain JAX.
"""
TILES = (512, 384, 256, 128)
"""Numbers of queries or keys that splash attention can process as one block, largest first. It uses the largest one
that divides the length, after the length has been padded to a multiple of the smallest.
"""


def choose(kernel: Kernel, query_bthk, key_bgsk, mask: Mask | None, biased: bool, dropped: bool) -> str:
    """Chooses the implementation of attention for the given inputs: `blocks`, `splash`, `cudnn` or `ring`.

    If `splash` or `cudnn` is requested, `blocks` is still chosen for short inputs, for masks that are neither full nor
    causal (such as those of caches and prefixes), and for windows with `cudnn`. If `ring` is requested but the mesh
    does not split both queries and keys into equal parts, the choice is the same as for `auto`.

    Args:
      kernel: requested implementation, or `auto`.
      query_bthk: queries, [batch, queries, heads, head_dim].
      key_bgsk: keys, [batch, kv_heads, keys, head_dim].
      mask: attention mask, or None for full attention.
      biased: whether a bias is added to the scores.
      dropped: whether dropout is applied to the weights.

    Raises:
      InputError: If `splash` or `cudnn` is requested but does not run on this platform or does not support this layer,
        or if `ring` is requested with dropout.
    """
    if kernel == "ring":
        if dropped and sharding.current_num_parts("query_position") > 1:
            raise InputError(f"attention.kernel=ring: {DROPPED}")
        if splits_positions(query_bthk, key_bgsk):
            return "ring"
        kernel = "auto"
    here = sharding.platform()
    name = kernel
    if kernel == "auto":
        name = next((name for name, home in PLATFORMS.items() if home == here), "blocks")
    if name != "blocks":
        problem = _problem(name, here, query_bthk, key_bgsk, biased, dropped)
        if problem and kernel != "auto":
            raise InputError(f"attention.kernel={kernel}: {problem}")
        if not problem and _supports_mask_and_length(name, query_bthk, key_bgsk, mask):
            return name
    return "ring" if kernel == "auto" and not dropped and splits_positions(query_bthk, key_bgsk) else "blocks"


def _supports_mask_and_length(name: str, query_bthk, key_bgsk, mask: Mask | None) -> bool:
    """Returns whether the kernel `name` supports the mask, and the inputs are long enough for it to save time. If the
    device mesh splits the queries, the number of queries per device must also be a multiple of the smallest entry of
    `TILES`.
    """
    queries, keys, parts = query_bthk.shape[1], key_bgsk.shape[2], _parts(query_bthk, key_bgsk)[0]
    if mask is not None:
        plain = mask.query_order is None or (mask.in_order and queries == keys)
        windowed = mask.window is not None and mask.window < max(queries, keys)
        if not plain or (windowed and not (name == "splash" and mask.aligned and queries == keys)):
            return False
    return min(queries, keys) >= SHORTEST and (parts == 1 or queries % (parts * TILES[-1]) == 0)


def _problem(name, here, query_bthk, key_bgsk, biased, dropped) -> str | None:
    """Returns the reason why an attention kernel does not support a layer, as text for an error message. None if it
    supports the layer.

    Args:
      name: name of the kernel, `splash` or `cudnn`.
      here: platform that the program runs on.
      query_bthk: queries, [batch, queries, heads, head_dim].
      key_bgsk: keys, [batch, kv_heads, keys, head_dim].
      biased: whether a bias is added to the scores.
      dropped: whether dropout is applied to the weights.
    """
    size, dtype = query_bthk.shape[-1], query_bthk.dtype
    if here != PLATFORMS[name]:
        return f"it runs on {PLATFORMS[name].upper()}, not on {here.upper()}"
    of_queries, _, of_keys = _parts(query_bthk, key_bgsk)
    if of_keys > 1 or (of_queries > 1 and name != "splash"):
        return "it needs whole rows, but the mesh splits their positions"
    if biased:
        return "it does not support a bias of the scores, such as relative positions"
    if dropped:
        return DROPPED
    if name == "cudnn" and (size % 8 or size > 128):
        return f"expected a head_dim that is a multiple of 8 and at most 128, not {size}"
    if name == "cudnn" and not (dtype == key_bgsk.dtype and dtype in (jnp.bfloat16, jnp.float16)):
        return f"it computes in bfloat16 or float16, not in {dtype}"
    return None


def splits_positions(query_bthk: jax.Array, key_bgsk: jax.Array) -> bool:
    """Returns whether the current mesh splits the sequence positions of both queries and keys into equal parts."""
    num_parts = _parts(query_bthk, key_bgsk)[0]
    return num_parts > 1 and key_bgsk.shape[2] % num_parts == 0


def _parts(query_bthk: jax.Array, key_bgsk: jax.Array) -> tuple[int, int, int]:
    """Returns the number of parts into which the current mesh splits the query positions, the query heads, and the key
    positions. 1 for what it does not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1, 1, 1
    of_queries = sharding.partition_spec("bthk", query_bthk.shape, mesh)
    of_keys = sharding.partition_spec("bgsk", key_bgsk.shape, mesh)
    queries, heads, keys = (sharding.parts(entry, mesh) for entry in (of_queries[1], of_queries[2], of_keys[2]))
    return queries, heads, keys


def splash(query_bthk, key_bgsk, value_bgsk, mask: Mask | None, scale: float, interpret: bool = False) -> jax.Array:
    """Computes attention with JAX's splash kernel for TPUs. The kernel skips blocks of queries and keys that a causal
    mask or a window hides completely.

    If the mesh splits the positions of queries, each device gathers all keys and values of its sequences. The backward
    pass gathers them again.

    Args:
      query_bthk: queries, [batch, queries, heads, head_dim].
      key_bgsk: keys, [batch, kv_heads, keys, head_dim].
      value_bgsk: values, [batch, kv_heads, keys, head_dim].
      mask: full or causal mask, which may have segments and a window. None for full attention.
      scale: factor by which the products of queries and keys are multiplied.
      interpret: whether to emulate the kernel without a TPU, which is slow.

    Returns:
      Attention output, [batch, queries, heads, head_dim].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    parts, of_heads, _ = _parts(query_bthk, key_bgsk)
    lengths = _padded(query_bthk.shape[1] // parts), _padded(key_bgsk.shape[2])
    mask = mask or Mask()
    # Without an order and a window, the kernel is the same on all devices. JAX cannot make it for parts of queries.
    shards = parts if mask.in_order or mask.window is not None else 1
    kernel = _splash_kernel(lengths, shards, query_bthk.shape[2] // of_heads, mask, interpret)

    def attend(query, key, value, segments, kernel):
        rows, queries, keys = len(query), query.shape[1], key.shape[2]
        missing = lengths[0] - queries, lengths[1] - keys
        if any(missing) and segments is None:
            segments = jnp.zeros((rows, queries), jnp.int32), jnp.zeros((rows, keys), jnp.int32)
        if segments is not None:  # Padding gets a segment that no token has.
            segments = kernels.SegmentIds(*map(lambda ids, by: _pad(ids, 1, by, -1), segments, missing))
        query = _pad((query * scale).swapaxes(1, 2), 2, missing[0])
        key, value = _pad(key, 2, missing[1]), _pad(value, 2, missing[1])
        # Without residuals it returns one array.
        output: Any = jax.vmap(kernel)(query, key, value, segments)
        return output.swapaxes(1, 2)[:, :queries]

    def run(query, key, value, segments):
        return _on_mesh(attend, query, key, value, segments, (kernel, shards))

    if parts > 1:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(SAVED))
    return run(query_bthk, key_bgsk, value_bgsk, _segments(mask))


def _splash_kernel(lengths: tuple[int, int], parts: int, heads: int, mask: Mask, interpret: bool) -> Any:
    """Creates the splash attention kernel for inputs of the given size.

    Args:
      lengths: number of queries per device, and number of keys.
      parts: number of different kernels: the number of devices that the queries of a sequence are split across, if the
        mask depends on their positions, or else 1.
      heads: number of heads per device.
      mask: attention mask. The kernel skips blocks that are hidden by its causal order or its window.
      interpret: whether to emulate the kernel without a TPU.
    """
    # Imported here because Pallas is slow to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = parts * lengths[0], lengths[1]
    seen = masks.CausalMask(shape) if mask.in_order else masks.FullMask(shape)
    if mask.window is not None:
        before = mask.window - 1
        seen = masks.LocalMask(shape, (before, 0 if mask.in_order else before), 0)
    of_queries, of_keys = (next(tile for tile in TILES if length % tile == 0) for length in lengths)
    sizes = kernels.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * heads),
        interpret=interpret,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=SAVED,
    )


def _padded(length: int) -> int:
    return length + -length % TILES[-1]


def cudnn(query_bthk, key_bgsk, value_bgsk, mask: Mask | None, scale: float, otherwise: Callable[[], jax.Array]):
    """Computes attention with cuDNN.

    If each batch row contains only one text (segment) followed by padding, cuDNN takes the length of each row.
    Otherwise, it takes the mask of the segments as a matrix, which the backward pass computes again. If this matrix
    would be too large (see `MATRIX`), `otherwise` is called instead. The segments are checked on the device when the
    program runs. The output at padding positions is arbitrary.

    Args:
      query_bthk: queries, [batch, queries, heads, head_dim].
      key_bgsk: keys, [batch, kv_heads, keys, head_dim].
      value_bgsk: values, [batch, kv_heads, keys, head_dim].
      mask: full or causal mask, which may have segments. None for full attention.
      scale: factor by which the products of queries and keys are multiplied.
      otherwise: function without arguments that computes the same attention in another way.

    Returns:
      Attention output, [batch, queries, heads, head_dim].
    """
    segments = _segments(mask)
    arrays = query_bthk, key_bgsk, value_bgsk, segments

    def by_lengths():
        return _on_mesh(flash(mask, scale), *arrays)

    def by_matrix():
        return jax.checkpoint(functools.partial(_on_mesh, flash(mask, scale, packed=True)))(*arrays)

    if segments is None:
        return by_lengths()
    small = query_bthk.shape[1] * key_bgsk.shape[2] <= MATRIX
    return jax.lax.cond(_is_one_segment(*segments), by_lengths, by_matrix if small else otherwise)


def flash(
    mask: Mask | None, scale: float, implementation: Literal["xla", "cudnn"] = "cudnn", packed: bool = False
) -> Callable[..., jax.Array]:
    """Returns a function (query, key, value, segments, kernel=None) that computes attention with
    `jax.nn.dot_product_attention`. `segments` is a pair of those of the queries and of the keys, or None. `kernel` is
    not used.

    Args:
      mask: attention mask. Only its property of being causal or not is used.
      scale: factor by which the products of queries and keys are multiplied.
      implementation: implementation that `jax.nn.dot_product_attention` uses.
      packed: whether rows may contain several segments, so that the mask of the segments is passed on as a matrix.
        Otherwise, only the number of tokens of each row is passed on.
    """

    def attend(query, key, value, segments, kernel=None):
        del kernel
        rows, queries, keys = query.shape[0], query.shape[1], key.shape[2]
        odd = queries % 2, keys % 2  # The gradient of JAX's cuDNN attention does not support odd lengths.
        of_queries = of_keys = allowed = None
        if packed:
            ids = (_pad(array, 1, by) for array, by in zip(segments, odd, strict=True))
            allowed = Mask.of_segments(*ids).dense()
        elif segments is not None:
            of_queries, of_keys = (jnp.sum(ids != 0, axis=1, dtype=jnp.int32) for ids in segments)
        elif any(odd):
            of_queries, of_keys = (jnp.full(rows, length, jnp.int32) for length in (queries, keys))
        output = jax.nn.dot_product_attention(
            _pad(query, 1, odd[0]),
            _pad(key.swapaxes(1, 2), 1, odd[1]),
            _pad(value.swapaxes(1, 2), 1, odd[1]),
            mask=allowed,
            scale=scale,
            is_causal=mask is not None and mask.in_order,
            implementation=implementation,
            query_seq_lengths=of_queries,
            key_value_seq_lengths=of_keys,
        )
        return output[:, :queries]

    return attend


def _segments(mask: Mask | None) -> tuple[jax.Array, jax.Array] | None:
    """Returns the segment numbers of the queries and of the keys in a mask, int32 [batch, length] each. None if the
    mask has none. 0 marks padding.
    """
    if mask is None or mask.query_segments is None:
        return None
    return jnp.asarray(mask.query_segments, jnp.int32), jnp.asarray(mask.key_segments, jnp.int32)


def _is_one_segment(query_segments, key_segments) -> jax.Array:
    """Returns whether all batch rows contain exactly one segment, followed only by padding, as a boolean scalar.
    `query_segments` and `key_segments` are the segment numbers, integers [batch, length], 0 for padding.
    """

    def is_one(ids):
        first = jnp.arange(ids.shape[1]) < jnp.sum(ids != 0, axis=1, keepdims=True)
        return jnp.all(ids == jnp.where(first, query_segments[:, :1], 0)) & jnp.all(ids[:, 0] != 0)

    return is_one(query_segments) & is_one(key_segments)


def _on_mesh(attend, query_bthk, key_bgsk, value_bgsk, segments, made: tuple[Any, int] = (None, 1)) -> jax.Array:
    """Runs the function `attend` on each device with its own batch rows, queries and heads, because the compiler cannot
    split an attention kernel across devices.

    `made` contains the splash kernel that is passed to `attend` (or None), and the number of different kernels that the
    devices need, because they have different queries of a sequence.
    """
    kernel, shards = made
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(query_bthk, key_bgsk, value_bgsk, segments, kernel)
    key_bgsk, value_bgsk = with_own_heads(query_bthk, key_bgsk, value_bgsk)
    of_queries = sharding.partition_spec("bthk", query_bthk.shape, mesh)
    of_keys = sharding.partition_spec("bgsk", key_bgsk.shape, mesh)
    rows, positions, *_ = of_queries
    of_segments = None if segments is None else (PartitionSpec(rows, positions), PartitionSpec(rows))
    # The kernel asks how large its shards are, which JAX does not say for a mesh with axes that are manual already.
    free = jax.sharding.AbstractMesh(mesh.axis_sizes, mesh.axis_names)
    of_kernel = kernel and kernel.manual_sharding_spec(
        NamedSharding(free, PartitionSpec(None, positions if shards > 1 else None))
    )
    specs = of_queries, of_keys, of_keys, of_segments, of_kernel
    split = jax.shard_map(attend, in_specs=specs, out_specs=of_queries, check_vma=False)
    return split(query_bthk, key_bgsk, value_bgsk, segments, kernel)


def with_own_heads(query_bthk, key_bgsk, value_bgsk) -> tuple[jax.Array, jax.Array]:
    """Repeats the heads of keys and values if there are too few to divide them among the devices in the same way as the
    query heads. Returns the keys and the values.
    """
    groups, (_, num_parts, _) = key_bgsk.shape[1], _parts(query_bthk, key_bgsk)
    copies = math.lcm(groups, num_parts) // groups
    if copies == 1:
        return key_bgsk, value_bgsk
    return jnp.repeat(key_bgsk, copies, axis=1), jnp.repeat(value_bgsk, copies, axis=1)


def _pad(array: jax.Array, axis: int, by: int, value: int = 0) -> jax.Array:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, by)
    return jnp.pad(array, widths, constant_values=value)
