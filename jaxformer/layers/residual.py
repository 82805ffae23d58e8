"""Layer scale and drop path, between a layer's output and the residual stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.parallel import metadata


class ResidualBranch(nn.Module):
    """`keep · scale · y`: of each dimension a learned scale, of each example all or nothing while training."""

    layer_scale: float | None = None
    """Initial scale of each dimension (Touvron et al. 2021, CaiT); None: no scales."""
    drop_path: float = 0.0
    """Probability that an example leaves a layer of the last block out in training; it grows linearly from 0 in the
    first block (stochastic depth, Huang et al. 2016)."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise InputError(f"residual.drop_path={self.drop_path}: expected 0 or more, below 1")

    @nn.compact
    def __call__(self, y: jax.Array, depth: jax.Array | float = 1.0, train: bool = False) -> jax.Array:
        """Maps a layer's output to what is added, [b, t, d] both.

        Args:
          y: [b, t, d].
          depth: the position of the block in the stack, from 0 for the first to 1 for the last.
          train: whether to drop paths; needs the rng stream `dropout`.
        """
        if self.layer_scale is not None:
            init = metadata.with_axes(nn.initializers.constant(self.layer_scale), "d")
            y = y * self.param("scale", init, (y.shape[-1],)).astype(y.dtype)
        if train and self.drop_path:
            stays = 1.0 - self.drop_path * jnp.asarray(depth, jnp.float32)
            keep = jax.random.bernoulli(self.make_rng("dropout"), stays, (len(y), 1, 1))
            y = jnp.where(keep, y / stays.astype(y.dtype), 0)
        return y
