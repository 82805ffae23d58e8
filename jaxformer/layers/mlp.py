"""Position-wise networks: the feed-forward network of blocks, and the layer in front of an output map."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear
from jaxformer.metrics.means import Mean

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """The function of that name.

    `gelu` is exact; `gelu_tanh` and `quick_gelu`, which is x · sigmoid(1.702 x), are its approximations (Hendrycks &
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
    """`down(activation(up(x)))` (Vaswani et al. 2017, §3.3): [b, t, d] → [b, t, d]."""

    width: int | None = None
    """Inner width; by default four times the model's."""
    activation: Activation = "gelu"
    """The function between the two maps."""
    bias: bool = True
    """Whether the two maps have biases."""

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"mlp.width={self.width}: expected at least 1")

    def inner(self, embed: int) -> int:
        """The inner width in a model of that width."""
        return self.width or 4 * embed

    def flops(self, embed: int) -> float:
        """Floating-point operations of the two maps for one token."""
        return 4.0 * embed * self.inner(embed)

    @nn.compact
    def __call__(self, x: jax.Array, dtype: DType = "auto", train: bool = False) -> tuple[jax.Array, dict[str, Mean]]:
        """Maps x; the second result is for auxiliary means, and empty here."""
        del train
        embed = x.shape[-1]
        width = self.inner(embed)
        x = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="up")(x)
        x = activation(self.activation)(x)
        return Linear("btf,fd->btd", (width, embed), self.bias, dtype, name="down")(x), {}


class GatedMlp(nn.Module):
    """`down(activation(gate(x)) · up(x))` (Shazeer 2020): [b, t, d] → [b, t, d]."""

    width: int | None = None
    """Inner width; by default eight thirds of the model's, up to the next multiple of 32: the weights of an `Mlp`."""
    activation: Activation = "silu"
    """The function of the gate."""
    bias: bool = False
    """Whether the three maps have biases."""

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"mlp.width={self.width}: expected at least 1")

    def inner(self, embed: int) -> int:
        """The inner width in a model of that width."""
        return self.width or -(-8 * embed // (3 * 32)) * 32

    def flops(self, embed: int) -> float:
        """Floating-point operations of the three maps for one token."""
        return 6.0 * embed * self.inner(embed)

    @nn.compact
    def __call__(self, x: jax.Array, dtype: DType = "auto", train: bool = False) -> tuple[jax.Array, dict[str, Mean]]:
        """Maps x; the second result is for auxiliary means, and empty here."""
        del train
        embed = x.shape[-1]
        width = self.inner(embed)
        gate = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="gate")(x)
        x = Linear("btd,df->btf", (embed, width), self.bias, dtype, name="up")(x)
        x = activation(self.activation)(gate) * x
        return Linear("btf,fd->btd", (width, embed), self.bias, dtype, name="down")(x), {}


class HeadLayer(nn.Module):
    """`norm(activation(dense(x)))`, the layer between an encoder and an output map: [b, m, d] → [b, m, d].

    BERT has it before the decoder of masked tokens (Devlin et al. 2019), ModernBERT before its classes too (Warner et
    al. 2024).
    """

    activation: Activation = "gelu"
    """The function after the linear map."""
    norm: nn.Module | None = None
    """The norm of the result, such as `LayerNorm()`; None: none."""
    bias: bool = True
    """Whether the linear map has a bias."""

    def __post_init__(self):
        if self.norm is not None and self.norm.parent is None:
            # The same instance in another place, such as the stack's norm, would share its parameters.
            object.__setattr__(self, "norm", self.norm.clone(parent=None, name=None))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, dtype: DType = "auto") -> jax.Array:
        width = x.shape[-1]
        x = Linear("bmi,id->bmd", (width, width), self.bias, dtype, name="dense")(x)
        x = activation(self.activation)(x)
        return x if self.norm is None else self.norm(x)
