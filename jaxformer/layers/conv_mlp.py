"""Feed-forward network of the blocks of FastSpeech, which combines neighboring positions (Ren et al. 2019, §3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import Tokens
from jaxformer.layers.mlp import Activation, activation
from jaxformer.layers.time_convolution import TimeConvolution
from jaxformer.metrics.means import Mean


class ConvMlp(nn.Module):
    """Feed-forward network `down(activation(up(x)))` whose first layer is a convolution over positions: [batch, length,
    embed] → [batch, length, embed]. Padding counts as zeros. It cannot be used in a decoder of tokens.
    """

    width: int = 1024
    """Inner width."""
    taps: int = 9
    """Kernel size of the convolution, an odd number of positions."""
    activation: Activation = "relu"
    """Activation function between the two layers."""

    def __post_init__(self):
        super().__post_init__()
        if self.width < 1:
            raise InputError(f"mlp.width={self.width}: expected at least 1")
        if self.taps < 1 or self.taps % 2 == 0:
            raise InputError(f"mlp.taps={self.taps}: expected an odd number")

    def inner(self, embed: int) -> int:
        """Returns the inner width. `embed` is the size of the model's vectors."""
        del embed
        return self.width

    def flops(self, embed: int) -> float:
        """Returns the number of floating-point operations per position in the forward pass, in a model with vectors of
        size `embed`.
        """
        return 2.0 * (self.taps + 1) * embed * self.width

    @nn.compact
    def __call__(
        self, x: jax.Array, dtype: DType = "auto", train: bool = False, tokens: Tokens | None = None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Applies the network to x [batch, length, embed]. Returns the output of the same shape, and an empty dict: it
        has no auxiliary losses. `tokens` marks padding. `train` is not used.
        """
        del train
        embed = x.shape[-1]
        if tokens is not None and tokens.at is not None:
            raise InputError("mlp=ConvMlp: combines neighboring positions; expected Mlp in a model of masked tokens")
        if tokens is not None and (real := tokens.real) is not None:
            x = jnp.where(real[..., None], x, 0)
        x = TimeConvolution(self.width, self.taps, dtype=dtype, name="up")(x)
        x = activation(self.activation)(x)
        return Linear("btf,fd->btd", (self.width, embed), dtype=dtype, name="down")(x), {}
