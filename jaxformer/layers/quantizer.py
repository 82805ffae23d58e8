"""Product quantizer with Gumbel softmax, which discretizes frames of speech (Baevski et al. 2020, §2)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.linear import Linear
from jaxformer.parallel import metadata


class Quantized(NamedTuple):
    """Output of a `ProductQuantizer`."""

    vectors: jax.Array
    """Chosen entries of all codebooks, concatenated, float32 [batch, length, width]."""
    codes: jax.Array
    """Index of the chosen entry of each codebook, int32 [batch, length, codebooks]."""
    probabilities: jax.Array
    """Probability of each entry, float32 [batch, length, codebooks, entries]. In training, the softmax of the logits;
    otherwise 1 for the chosen entry and 0 for all others.
    """


class ProductQuantizer(nn.Module):
    """Replaces each input vector by one entry of each of several codebooks (Jégou et al. 2011).

    The entry with the highest logit is chosen. In training, random Gumbel noise is added to the logits, and gradients
    are those of a softmax with a temperature (straight-through; Jang et al. 2017).
    """

    codebooks: int = 2
    """Number of codebooks."""
    entries: int = 320
    """Number of entries per codebook."""
    width: int = 256
    """Size of the concatenated entries of all codebooks."""
    temperature: float = 2.0
    """Temperature of the softmax whose gradients are used in training."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Quantized:
        """Quantizes x [batch, length, channels]. Training requires the rng stream `dropout`."""
        books, entries = self.codebooks, self.entries
        size = 3**0.5 * x.shape[-1] ** 0.5  # The standard deviation of the initial kernel is 1.
        layer = Linear("bti,iv->btv", (x.shape[-1], books * entries), dtype="float32", init_scale=size, name="logits")
        logits = layer(x).reshape(*x.shape[:2], books, entries)
        init = metadata.with_axes(nn.initializers.uniform(1.0), "___")
        table = self.param("codebook", init, (books, entries, self.width // books))
        if train:
            probabilities = jax.nn.softmax(logits)
            noisy = (logits + jax.random.gumbel(self.make_rng("dropout"), logits.shape)) / self.temperature
            codes, soft = noisy.argmax(-1), jax.nn.softmax(noisy)
            hard = jax.nn.one_hot(codes, entries)
            chosen = hard + soft - jax.lax.stop_gradient(soft)
        else:
            codes = logits.argmax(-1)
            chosen = probabilities = jax.nn.one_hot(codes, entries)
        vectors = jnp.einsum("btgv,gvk->btgk", chosen, table).reshape(*x.shape[:2], -1)
        return Quantized(vectors, codes.astype(jnp.int32), probabilities)
