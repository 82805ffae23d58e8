"""An MLP whose blocks add an auxiliary mean to the loss."""

import flax.linen as nn
import jax.numpy as jnp

from jaxformer.layers.linear import Linear
from jaxformer.metrics.means import Mean


class CountingMlp(nn.Module):
    """An MLP with an auxiliary mean: the mean square of its outputs."""

    activation: str = "gelu"

    @nn.compact
    def __call__(self, x, dtype="auto", train=False, tokens=None):
        y = jnp.tanh(Linear("btd,df->btf", (16, 16), dtype=dtype, name="only")(x))
        return y, {"square": Mean(jnp.sum(jnp.square(y)), jnp.asarray(float(y.size)))}
