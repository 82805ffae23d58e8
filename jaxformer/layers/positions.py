"""Position encodings that are added to embeddings."""

import jax
import jax.numpy as jnp


def sinusoidal(positions: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Sines in the first half of the width, cosines in the second (Vaswani et al. 2017, §3.5).

    The paper interleaves the two; the halves are a fixed permutation of it, and the layout that Marian's
    checkpoints have.

    Args:
      positions: integers [...].
      width: even size of the encoding.
      longest: wavelength of the slowest pair, in units of 2π positions.

    Returns:
      float32 [..., width].
    """
    if width % 2:
        raise ValueError(f"width {width} is odd: sines and cosines take half each")
    frequencies = longest ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
