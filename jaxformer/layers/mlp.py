"""Layers that compute each position separately: the feed-forward network of a block, and the transform (linear layer,
activation and norm) that prediction heads such as BERT's apply before their output layer.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import Tokens
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]
"""Name of an activation function. See `activation` for their definitions."""


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation function with the given name.

    `gelu` is exact. `gelu_tanh` and `quick_gelu`, which is x · sigmoid(1.702 x), are approximations of it (Hendrycks &
    Gimpel 2016).
    """
    functions = {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "tanh": jax.numpy.tanh,
    }
    return functions[name]


class Mlp(nn.Module):
    """Feed-forward network `down(activation(up(x)))` (Vaswani et al. 2017, §3.3): [batch, length, embed] →
    [batch, length, embed].
    """

    width: int | None = None
    """Inner width. Defaults to four times the model width."""
    activation: Activation = "gelu"
    """Activation function between the two linear layers."""
    bias: bool = True
    """Whether the two linear layers have biases."""

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"mlp.width={self.width}: expected at least 1")

    def inner(self, embed: int) -> int:
        """Returns the inner width, `self.width` or its default, in a model with vectors of size `embed`."""
        return self.width or 4 * embed

    def flops(self, embed: int) -> float:
        """Returns the number of floating-point operations per token in the forward pass, in a model with vectors of
        size `embed`.
        """
        return 4.0 * embed * self.inner(embed)

    @nn.compact
    def __call__(
        self, x: jax.Array, dtype: DType = "auto", train: bool = False, tokens: Tokens | None = None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Applies the network to x [batch, length, embed]. Returns the output of the same shape, and an empty dict:
        unlike a mixture of experts (`ExpertMlp`), it has no auxiliary losses. `train` and `tokens` are not used.
        """
        del train, tokens
        embed = x.shape[-1]
        width = self.inner(embed)
        x = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="up")(x)
        # Without the constraint, the compiler splits the positions of the activation instead of its width in the
        # backward pass, and exchanges all of it between devices.
        x = activation(self.activation)(sharding.constrain(x, "btf"))
        return Linear("btf,fd->btd", (width, embed), self.bias, dtype, name="down")(x), {}


class GatedMlp(nn.Module):
    """Gated feed-forward network `down(activation(gate(x)) · up(x))` (Shazeer 2020): [batch, length, embed] →
    [batch, length, embed].
    """

    width: int | None = None
    """Inner width. Defaults to 8/3 of the model width, rounded up to a multiple of 32, which gives about the same
    number of parameters as `Mlp`."""
    activation: Activation = "silu"
    """Activation function that is applied to the gate."""
    bias: bool = False
    """Whether the three linear layers have biases."""

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"mlp.width={self.width}: expected at least 1")

    def inner(self, embed: int) -> int:
        """Returns the inner width, `self.width` or its default, in a model with vectors of size `embed`."""
        return self.width or -(-8 * embed // (3 * 32)) * 32

    def flops(self, embed: int) -> float:
        """Returns the number of floating-point operations per token in the forward pass, in a model with vectors of
        size `embed`.
        """
        return 6.0 * embed * self.inner(embed)

    @nn.compact
    def __call__(
        self, x: jax.Array, dtype: DType = "auto", train: bool = False, tokens: Tokens | None = None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Applies the network to x [batch, length, embed]. Returns the output of the same shape, and an empty dict:
        unlike a mixture of experts (`ExpertMlp`), it has no auxiliary losses. `train` and `tokens` are not used.
        """
        del train, tokens
        embed = x.shape[-1]
        width = self.inner(embed)
        gate = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="gate")(x)
        x = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="up")(x)
        gate, x = sharding.constrain(gate, "btf"), sharding.constrain(x, "btf")  # As in `Mlp`.
        x = activation(self.activation)(gate) * x
        return Linear("btf,fd->btd", (width, embed), self.bias, dtype, name="down")(x), {}


class HeadLayer(nn.Module):
    """Layer between the encoder and the output layer of a model, `norm(activation(dense(x)))`: [batch, predictions,
    embed] → [batch, predictions, embed].

    BERT applies it before the output layer for masked language modeling (Devlin et al. 2019). ModernBERT also applies
    it before the classification layer (Warner et al. 2024).
    """

    activation: Activation = "gelu"
    """Activation function after the linear layer."""
    norm: nn.Module | None = None
    """Normalization of the result, such as `LayerNorm()`. If None, the result is not normalized."""
    bias: bool = True
    """Whether the linear layer has a bias."""

    def __post_init__(self):
        if self.norm is not None and self.norm.parent is None:
            # If the same instance is used elsewhere, such as in the stack, Linen would share its parameters.
            object.__setattr__(self, "norm", self.norm.clone(parent=None, name=None))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, dtype: DType = "auto") -> jax.Array:
        width = x.shape[-1]
        x = Linear("bmi,id->bmd", (width, width), self.bias, dtype, name="dense")(x)
        x = activation(self.activation)(x)
        return x if self.norm is None else self.norm(x)
