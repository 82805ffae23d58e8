"""Attention by its formula, with the whole matrix, and inputs for it: what the tests of `attend` share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers.masks import Mask

SIZE = 3


def case(queries, keys, heads=2, groups=2, rows=1, seed=0):
    """Queries, keys, values, a bias, and what the output is weighed with to make one number of it."""
    rng = np.random.default_rng(seed)
    shapes = {
        "query": (rows, queries, heads, SIZE),
        "key": (rows, groups, keys, SIZE),
        "value": (rows, groups, keys, SIZE),
        "bias": (heads, queries, keys),
        "cotangent": (rows, queries, heads, SIZE),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def documents(length, rows=1, seed=0):
    """Segments of random documents, and padding at the end of a row."""
    rng = np.random.default_rng(seed)
    cuts = rng.random((rows, length)) < 4 / length
    segments = 1 + np.cumsum(cuts, axis=1)
    segments[:, length - length // 8 :] = 0
    return segments.astype(np.int32)


def plain(query, key, value, seen=None, bias=None, scale=None, kept=None):
    """The formula with the whole matrix; `kept` are the weights that dropout leaves, with their factor."""
    sharing = query.shape[2] // key.shape[1]
    key, value = jnp.repeat(key, sharing, axis=1), jnp.repeat(value, sharing, axis=1)
    scores = jnp.einsum("bthk,bhsk->bhts", query, key) * (SIZE**-0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    scores = scores if seen is None else jnp.where(seen, scores, -1e30)
    weights = jax.nn.softmax(scores) * (1 if kept is None else kept)
    return jnp.einsum("bhts,bhsk->bthk", weights, value)


def values_and_gradients(function, arrays):
    """The output, and the gradients of its weighed sum."""

    def loss(arrays):
        output = function(**{name: array for name, array in arrays.items() if name != "cotangent"})
        return jnp.sum(output * arrays["cotangent"]), output

    (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
    del gradients["cotangent"]
    return {"output": output} | gradients


MASKS = {
    "everywhere": lambda length: None,
    "segments": lambda length: Mask.of_segments(documents(length), documents(length)),
    "causal": Mask.causal,
    "causal in segments": lambda length: Mask.causal(length, documents(length)),
    "prefix": lambda length: Mask.prefix(np.arange(length)[None] < length // 3),
}
