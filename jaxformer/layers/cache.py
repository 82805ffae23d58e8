"""Key-value caches for decoding. A cache contains the attention keys and values of earlier tokens. Each call of the
model adds those of the new tokens.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.masks import Mask

FREE = jnp.iinfo(jnp.int32).max
"""Value in `LayerCache.index` that marks an empty slot of the cache. It is greater than the index of any token, so that
causal masks hide the slot.
"""


@flax.struct.dataclass
class KeyValue:
    """Attention keys and values of one layer, both [batch, kv_heads, keys, head_dim]."""

    key: jax.Array
    """Keys, [batch, kv_heads, keys, head_dim]."""
    value: jax.Array
    """Values, [batch, kv_heads, keys, head_dim]."""


@flax.struct.dataclass
class LayerCache:
    """Key-value cache for the self-attention of one layer: an array of slots, which each hold the key and value of a
    token.
    """

    keys: KeyValue
    """Keys and values of the tokens in the slots, both [batch, kv_heads, slots, head_dim]."""
    index: jax.Array | None = None
    """Only for layers with a window, which reuse the slots of old tokens: index of the token in each slot, counted from
    the start of the sequence, or `FREE` if the slot is empty, integers [batch, slots]. If None, slot i contains token
    i.
    """

    def write(self, new: KeyValue, used: jax.Array | int) -> tuple["LayerCache", KeyValue]:
        """Adds the keys and values of new tokens to the cache.

        Args:
          new: keys and values of the new tokens, [batch, kv_heads, new tokens, head_dim].
          used: number of tokens before the new ones, scalar: the index of the first new token.

        Returns:
          The updated cache, and all keys and values that the new tokens may attend to. `Cache.mask` returns the mask
          for these keys, in the same order.
        """
        new = jax.tree.map(lambda kept, array: array.astype(kept.dtype), self.keys, new)
        if self.index is None:
            keys = jax.tree.map(lambda kept, array: _update(kept, array, used), self.keys, new)
            return dataclasses.replace(self, keys=keys), keys
        count, size = new.key.shape[2], self.keys.key.shape[2]
        kept = min(count, size)  # If there are more tokens than slots, only the last tokens are kept.
        last = used + jnp.arange(count - kept, count)
        slots = last % size
        keys = jax.tree.map(lambda array, add: array.at[:, :, slots].set(add[:, :, count - kept :]), self.keys, new)
        cache = LayerCache(keys, self.index.at[:, slots].set(last))
        if count == 1:
            return cache, keys
        # The first of the new tokens still attend to keys that later ones overwrite.
        return cache, jax.tree.map(lambda old, add: jnp.concatenate([old, add], axis=2), self.keys, new)


def _visible_index(index: jax.Array, used: jax.Array, count: int) -> jax.Array:
    """Returns the token index of each key that `LayerCache.write` returns in a layer with a window, integers [batch,
    keys].

    Args:
      index: token index of each slot before the new tokens are added, integers [batch, slots].
      used: index of the first new token, scalar.
      count: number of new tokens.
    """
    new = jnp.broadcast_to(used + jnp.arange(count), (len(index), count))
    if count == 1:
        return index.at[:, used % index.shape[1]].set(new[:, 0])
    return jnp.concatenate([index, new], axis=1)


def _update(kept: jax.Array, new: jax.Array, start: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=2)


@flax.struct.dataclass
class Cache:
    """Key-value cache for all layers of a stack of Transformer blocks. Each call of the stack takes a cache and returns
    the updated cache.
    """

    layers: tuple[LayerCache, ...]
    """Cache of the self-attention of each layer."""
    segments: jax.Array
    """Mask of the slots, integers [batch, slots]: 1 if a slot contains a token, 0 if it contains padding or is empty.
    """
    used: jax.Array
    """Number of slots used so far, scalar. It is the same for all sequences of the batch, which are padded to the same
    length.
    """
    memory: tuple[KeyValue, ...] | None = None
    """Keys and values of cross-attention for each layer, which do not change during decoding. None without
    cross-attention.
    """
    memory_segments: jax.Array | None = None
    """Mask of the vectors that cross-attention attends to, integers [batch, keys]: 0 is padding. If None, none of them
    are padding.
    """
    windows: tuple[int | None, ...] = flax.struct.field(pytree_node=False, default=())
    """Window size of the self-attention of each layer. None for layers without a window."""

    def room_for(self, tokens: int) -> "Cache":
        """Returns a copy of a full cache with empty slots added for new tokens.

        The cache of a layer with a window is limited to the window size: it becomes a ring buffer that keeps the latest
        tokens.

        Args:
          tokens: number of empty slots to add, one per new token.
        """
        slots = self.segments.shape[1]
        layers = []
        for layer, window in zip(self.layers, self.windows or (None,) * len(self.layers), strict=True):
            if window is None or window >= slots + tokens:
                layers.append(LayerCache(jax.tree.map(lambda array: _padded(array, tokens), layer.keys)))
            else:
                layers.append(_local(layer.keys, window))
        return dataclasses.replace(self, layers=tuple(layers), segments=jnp.pad(self.segments, [(0, 0), (0, tokens)]))

    def mask(self, layer: LayerCache, segments: jax.Array, order: jax.Array, window: int | None) -> Mask:
        """Returns the attention mask for new tokens and the keys that `LayerCache.write` returns.

        A new token attends to all cached tokens (with a window: those in the window), and to the new tokens whose order
        number is at most its own. (In causal models, the order number of a token is its index.)

        Args:
          layer: cache of the layer.
          segments: mask of the new tokens, integers [batch, new tokens]: 1 for tokens, 0 for padding.
          order: order numbers of the new tokens (see `Mask.query_order`), integers [batch or 1, new tokens], starting
            at `used`.
          window: window size of the layer, or None.
        """
        count, new = order.shape[1], (self.used + jnp.arange(order.shape[1]))[None]
        if layer.index is not None:
            index = _visible_index(layer.index, self.used, count)
            of_keys = jnp.take_along_axis(self.segments, jnp.minimum(index, self.segments.shape[1] - 1), axis=1)
            return Mask(segments, of_keys, order, index, new, index, window)
        slots = jnp.arange(self.segments.shape[1])
        keys = jnp.where(slots >= self.used + count, FREE, slots)
        keys = jnp.broadcast_to(keys, (order.shape[0], slots.shape[0]))  # Rows and slots may be symbolic.
        keys = jax.lax.dynamic_update_slice_in_dim(keys, order, self.used, axis=1)
        mask = Mask(segments, self.segments, order, keys)
        return (
            mask if window is None else dataclasses.replace(mask, query_index=new, key_index=slots[None], window=window)
        )


def _padded(array: jax.Array, tokens: int) -> jax.Array:
    return jnp.pad(array, [(0, 0), (0, 0), (0, tokens), (0, 0)])


def _local(keys: KeyValue, window: int) -> LayerCache:
    """Converts the keys and values of a cache with one slot per token to a ring buffer with `window` slots: slot i
    keeps the last token whose index modulo `window` is i.
    """
    rows, slots = keys.key.shape[0], keys.key.shape[2]
    if slots <= window:
        index = jnp.concatenate([jnp.arange(slots), jnp.full(window - slots, FREE)])
        keys = jax.tree.map(lambda array: _padded(array, window - slots), keys)
    else:
        index = jnp.array(sorted(range(slots - window, slots), key=lambda token: token % window))
        keys = jax.tree.map(lambda array: array[:, :, index], keys)
    return LayerCache(keys, jnp.broadcast_to(index, (rows, window)))
