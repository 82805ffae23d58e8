"""Caches: keys and values of earlier tokens, to which decoding adds one token or more at a time."""

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.masks import Mask

FREE = jnp.iinfo(jnp.int32).max
"""The index of a slot without a token: after every query."""


@flax.struct.dataclass
class KeyValue:
    """Keys and values of one layer, laid out for products with queries."""

    key: jax.Array
    """[b, g, s, k]."""
    value: jax.Array
    """[b, g, s, k]."""


@flax.struct.dataclass
class LayerCache:
    """The cache of one layer's self-attention."""

    keys: KeyValue
    """Keys and values of the tokens in the slots."""
    index: jax.Array | None = None
    """Integers [b, s]: the index in its row of the token in each slot, or `FREE`; the layer has a window then, and its
    slots are used in turn. None: slot i has token i."""

    def write(self, new: KeyValue, used: jax.Array) -> tuple["LayerCache", KeyValue]:
        """Adds keys and values.

        Args:
          new: keys and values of t tokens, [b, g, t, k].
          used: scalar: the index of the first of them.

        Returns:
          The cache with them, and the keys and values that the new tokens attend to: `visible_index` has their indices.
        """
        new = jax.tree.map(lambda kept, array: array.astype(kept.dtype), self.keys, new)
        if self.index is None:
            keys = jax.tree.map(lambda kept, array: _update(kept, array, used), self.keys, new)
            return self.replace(keys=keys), keys
        count, size = new.key.shape[2], self.keys.key.shape[2]
        kept = min(count, size)  # Of more tokens than slots, the last ones stay.
        last = used + jnp.arange(count - kept, count)
        slots = last % size
        keys = jax.tree.map(lambda array, add: array.at[:, :, slots].set(add[:, :, count - kept :]), self.keys, new)
        cache = LayerCache(keys, self.index.at[:, slots].set(last))
        if count == 1:
            return cache, keys
        # Earlier ones of the new tokens still see what later ones overwrite.
        return cache, jax.tree.map(lambda old, add: jnp.concatenate([old, add], axis=2), self.keys, new)

    def visible_index(self, used: jax.Array, count: int) -> jax.Array:
        """Integers [b, s]: where a layer has a window, the indices of the keys that `write` returns for new tokens."""
        new = jnp.broadcast_to(used + jnp.arange(count), (len(self.index), count))
        if count == 1:
            return self.index.at[:, used % self.index.shape[1]].set(new[:, 0])
        return jnp.concatenate([self.index, new], axis=1)


def _update(kept: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=2)


@flax.struct.dataclass
class Cache:
    """The keys and values of the tokens so far: an argument of a stack, and part of its result."""

    layers: tuple[LayerCache, ...]
    """The cache of each layer's self-attention."""
    segments: jax.Array
    """Integers [b, s]: 1 where a slot has a token, 0 where it is padding or free."""
    used: jax.Array
    """Scalar: slots filled so far, in every row."""
    memory: tuple[KeyValue, ...] | None = None
    """Keys and values of cross-attention, a layer each."""
    memory_segments: jax.Array | None = None
    """Integers [b, s]: 0 where the memory is padding."""
    windows: tuple[int | None, ...] = flax.struct.field(pytree_node=False, default=())
    """The window of each layer's self-attention, or None."""

    def room_for(self, tokens: int) -> "Cache":
        """A full cache with room for more tokens; layers with a window keep no more slots than that.

        Args:
          tokens: how many more.
        """
        slots = self.segments.shape[1]
        layers = []
        for layer, window in zip(self.layers, self.windows or (None,) * len(self.layers), strict=True):
            if window is None or window >= slots + tokens:
                layers.append(LayerCache(jax.tree.map(lambda array: _padded(array, tokens), layer.keys)))
            else:
                layers.append(_local(layer.keys, window))
        return self.replace(layers=tuple(layers), segments=jnp.pad(self.segments, [(0, 0), (0, tokens)]))

    def mask(self, layer: LayerCache, segments: jax.Array, order: jax.Array, window: int | None) -> Mask:
        """The mask for new tokens: they see all cached keys, and new keys with an order no greater than their own.

        Args:
          layer: the cache of the layer.
          segments: integers [b, t].
          order: integers [b, t] or [1, t], from `used` on.
          window: the layer's, or None.
        """
        count, new = order.shape[1], (self.used + jnp.arange(order.shape[1]))[None]
        if layer.index is not None:
            index = layer.visible_index(self.used, count)
            of_keys = jnp.take_along_axis(self.segments, jnp.minimum(index, self.segments.shape[1] - 1), axis=1)
            return Mask(segments, of_keys, order, index, new, index, window)
        slots = jnp.arange(self.segments.shape[1])
        keys = jnp.where(slots >= self.used + count, FREE, slots)
        keys = jnp.broadcast_to(keys, (order.shape[0], slots.shape[0]))  # Rows and slots may be symbolic.
        keys = jax.lax.dynamic_update_slice_in_dim(keys, order, self.used, axis=1)
        mask = Mask(segments, self.segments, order, keys)
        return mask if window is None else mask.replace(query_index=new, key_index=slots[None], window=window)


def _padded(array: jax.Array, tokens: int) -> jax.Array:
    return jnp.pad(array, [(0, 0), (0, 0), (0, tokens), (0, 0)])


def _local(keys: KeyValue, window: int) -> LayerCache:
    """Converts a full cache to a ring of slots; each has the last token whose index modulo their number is its own."""
    rows, slots = keys.key.shape[0], keys.key.shape[2]
    if slots <= window:
        index = jnp.concatenate([jnp.arange(slots), jnp.full(window - slots, FREE)])
        keys = jax.tree.map(lambda array: _padded(array, window - slots), keys)
    else:
        index = jnp.array(sorted(range(slots - window, slots), key=lambda token: token % window))
        keys = jax.tree.map(lambda array: array[:, :, index], keys)
    return LayerCache(keys, jnp.broadcast_to(index, (rows, window)))
