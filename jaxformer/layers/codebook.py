"""Vector quantization: replaces vectors by the nearest entries of a learned codebook (van den Oord et al. 2017)."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.linear import truncated_normal
from jaxformer.parallel import metadata

SHARPNESS = 10.0
"""Factor of the cosine similarities in the softmax from which the usage of codes is computed."""


@flax.struct.dataclass
class CodebookOutput:
    """Vectors that are replaced by entries of a codebook."""

    codes: jax.Array
    """Index of the nearest entry of each vector, int32 [batch, positions]."""
    vectors: jax.Array
    """Nearest entries, float32 [batch, positions, width]. Their gradient goes to the vectors that they replace
    (straight-through).
    """
    errors: jax.Array
    """Mean squared distance between vectors and their entries per image, float32 [batch]. Its gradient goes to the
    entries.
    """
    commitment: jax.Array
    """The same distance, whose gradient goes to the vectors."""
    usage: jax.Array
    """Share of each entry in the image, float32 [batch, entries]: the mean over the positions of a softmax over the
    similarities with all entries. It has a gradient for entries that are not the nearest one of any vector.
    """


class Codebook(nn.Module):
    """Table of vectors of length 1, to which vectors are compared by their cosine similarity (Yu et al. 2022,
    ViT-VQGAN).

    Training should keep `CodebookOutput.usage` uniform on average, so that all entries are used.
    """

    entries: int
    """Number of entries."""
    width: int
    """Size of an entry. A small size, such as 16 or 32, helps to use all entries."""

    def setup(self):
        init = metadata.with_axes(truncated_normal(1.0), "v_")
        self.table = self.param("table", init, (self.entries, self.width))

    def __call__(self, x: jax.Array) -> CodebookOutput:
        """Replaces vectors `x` [batch, positions, width] by the nearest entries."""
        x, table = unit(x), unit(self.table)
        similarities = jnp.einsum("bpk,vk->bpv", x, table)
        codes = jnp.argmax(similarities, -1)
        entries = table[codes]
        vectors = x + jax.lax.stop_gradient(entries - x)
        return CodebookOutput(
            codes=codes,
            vectors=vectors,
            errors=_distance(entries, jax.lax.stop_gradient(x)),
            commitment=_distance(x, jax.lax.stop_gradient(entries)),
            usage=jax.nn.softmax(SHARPNESS * similarities).mean(1),
        )

    def look_up(self, codes: jax.Array) -> jax.Array:
        """Returns the entries with the indices `codes` [batch, positions], float32 [batch, positions, width]."""
        return unit(self.table)[codes]


def unit(x: jax.Array) -> jax.Array:
    """Divides vectors [..., width] by their L2 norm, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.square(wide).sum(-1, keepdims=True) + 1e-12)


def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the squared distance between vectors [batch, positions, width], averaged over positions, [batch]."""
    return jnp.square(x - y).sum(-1).mean(-1)
