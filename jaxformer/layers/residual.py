"""Scaling of residual branches: LayerScale and stochastic depth, which are applied to the output of a layer before it
is added to the residual stream.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.parallel import metadata


class ResidualBranch(nn.Module):
    """Scales the output `y` of a layer before it is added to the residual stream: `keep · scale · y`.

    `scale` is a learned factor per dimension (LayerScale). `keep` is 1, except in training with stochastic depth: then
    it is 0 for randomly chosen examples, which skip the layer, and 1 / P(keep) for the others.
    """

    layer_scale: float | None = None
    """Initial value of the learned factor per dimension (LayerScale; Touvron et al. 2021, CaiT). If None, there is
    none.
    """
    drop_path: float = 0.0
    """Probability that an example skips a layer of the last block in training (stochastic depth, Huang et al. 2016).
    For earlier blocks the probability is lower: it increases linearly from 0 in the first block.
    """

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise InputError(f"residual.drop_path={self.drop_path}: expected 0 or more, below 1")

    @nn.compact
    def __call__(self, y: jax.Array, depth: jax.Array | float = 1.0, train: bool = False) -> jax.Array:
        """Applies LayerScale and stochastic depth to the output of a layer. Returns the vectors to add to the residual
        stream, [batch, length, embed].

        Args:
          y: output of a layer, [batch, length, embed].
          depth: relative depth of the block, from 0 for the first block to 1 for the last.
          train: whether to apply stochastic depth. Requires the rng stream `dropout`.
        """
        if self.layer_scale is not None:
            init = metadata.with_axes(nn.initializers.constant(self.layer_scale), "d")
            y = y * self.param("scale", init, (y.shape[-1],)).astype(y.dtype)
        if train and self.drop_path:
            stays = 1.0 - self.drop_path * jnp.asarray(depth, jnp.float32)
            keep = jax.random.bernoulli(self.make_rng("dropout"), stays, (len(y), 1, 1))
            y = jnp.where(keep, y / stays.astype(y.dtype), 0)
        return y
