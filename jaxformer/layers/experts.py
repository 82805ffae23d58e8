"""Mixture of experts: several feed-forward networks, and a router that chooses some of them for each token."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers import dispatch
from jaxformer.layers.dispatch import Kernels, Routes
from jaxformer.layers.linear import DType, Linear, compute_dtype, truncated_normal
from jaxformer.layers.masks import Tokens
from jaxformer.layers.mlp import Activation
from jaxformer.metrics.means import REPORTED, Mean, whole
from jaxformer.parallel import metadata

BALANCE, ROUTER_Z = "load_balance", "router_z"
"""Keys under which a mixture of experts returns its auxiliary losses: load balancing and router z-loss."""
LOAD, DROPPED = f"{REPORTED}largest_expert_load", f"{REPORTED}dropped_tokens"
"""Keys under which a mixture of experts returns metrics that are reported but not added to the loss: the share of the
busiest expert, and the share of dropped tokens.
"""


class ExpertMlp(nn.Module):
    """Mixture of experts, [batch, length, embed] → [batch, length, embed]: the sum of the outputs of the `top_k` most
    probable experts, weighted by probability.

    A router, a linear layer in float32, gives each token a probability of each expert (Shazeer et al. 2017; Fedus et
    al. 2022, Switch Transformer; Jiang et al. 2024, Mixtral). Each expert is a `GatedMlp` or an `Mlp` without biases.
    For padding, no expert is computed, and the output is 0.

    A block also returns these metrics, averaged over tokens and blocks. Training adds those that begin with
    `auxiliary/` to the loss, and reports the others:

    - `auxiliary/load_balance`: experts · Σ fᵢ pᵢ, where fᵢ is the mean number of choices of expert i per token and pᵢ
      its mean probability (Fedus et al. 2022, eq. 4). Equal to `top_k` if the load is even. It is computed per block
      and micro-batch over the tokens of all devices, so it does not depend on the mesh, and then averaged, weighted by
      the number of tokens.
    - `auxiliary/router_z`: mean square of the logarithm of the router's partition function (Zoph et al. 2022, ST-MoE,
      eq. 5).
    - `reported/largest_expert_load`: share of all (token, expert) choices that go to the busiest expert, per
      micro-batch and block.
    - `reported/dropped_tokens`: share of the choices that are dropped because of `capacity`.
    """

    experts: int = 8
    """Number of experts."""
    top_k: int = 2
    """Number of experts that are computed for each token."""
    width: int | None = None
    """Inner width of an expert. Defaults to the default inner width of `GatedMlp`, or of `Mlp` if experts are not
    gated.
    """
    activation: Activation = "silu"
    """Activation function of the gate, or between the linear layers if there is no gate."""
    gated: bool = True
    """Whether experts have a gate, as in `GatedMlp`. If False, experts have two linear layers, as in `Mlp`."""
    normalize: bool = True
    """Whether to divide the weights of a token's `top_k` experts by their sum, as in Mixtral. With `top_k=1`, all
    weights are then 1, and the router learns only from the auxiliary losses.
    """
    capacity: float | None = None
    """Maximum number of tokens per batch row that an expert computes in training, as a multiple of the even share
    length · top_k / experts (Lepikhin et al. 2021, GShard). The expert skips further tokens. If None, it computes all
    tokens, as always in evaluation.
    """
    balance_weight: float = 0.01
    """Weight of the load-balancing loss. Switch Transformer uses 0.01."""
    z_weight: float = 0.001
    """Weight of the router z-loss. ST-MoE uses 0.001."""

    mean_names: ClassVar[tuple[str, ...]] = (BALANCE, ROUTER_Z, LOAD, DROPPED)
    """Keys of the losses and metrics that the layer returns in addition to its output."""

    def __post_init__(self):
        super().__post_init__()
        for field in ("experts", "top_k", "width"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"mlp.{field}={value}: expected at least 1")
        if self.top_k > self.experts:
            raise InputError(f"mlp.top_k={self.top_k}: expected at most mlp.experts={self.experts}")
        if self.capacity is not None and not self.capacity > 0:
            raise InputError(f"mlp.capacity={self.capacity}: expected more than 0, or None to drop nothing")
        for field in ("balance_weight", "z_weight"):
            if not getattr(self, field) >= 0:
                raise InputError(f"mlp.{field}={getattr(self, field)}: expected at least 0")

    def inner(self, embed: int) -> int:
        """Returns the inner width of an expert for a model of width `embed`."""
        return self.width or (-(-8 * embed // (3 * 32)) * 32 if self.gated else 4 * embed)

    def flops(self, embed: int) -> float:
        """Returns the FLOPs per token: those of the router and of `top_k` experts."""
        return 2.0 * embed * self.experts + self.top_k * (6.0 if self.gated else 4.0) * embed * self.inner(embed)

    @nn.compact
    def __call__(
        self, x: jax.Array, dtype: DType = "auto", train: bool = False, tokens: Tokens | None = None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Computes the experts that the router chooses. Returns the output [batch, length, embed], and the auxiliary
        losses and metrics, keyed by name, as means over real tokens (without padding).

        Args:
          x: input vectors, [batch, length, embed].
          dtype: data type to compute experts in.
          train: whether to apply `capacity`, which limits the number of tokens per expert.
          tokens: marks the positions that contain tokens. If None, all positions do.
        """
        tokens = tokens or Tokens()
        kernels = self._kernels(x.shape[-1], dtype)
        logits = self._logits(x)
        probabilities = jax.nn.softmax(logits)
        weights, chosen = jax.lax.top_k(probabilities, self.top_k)
        if self.normalize:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        counted = tokens.counted(x.shape[:2])
        means = self._losses(logits, probabilities, chosen, counted)
        if (real := tokens.real) is not None:
            chosen = jnp.where(real[..., None], chosen, self.experts)
        routes = Routes(chosen, weights, counted)
        x = x.astype(compute_dtype(dtype))
        if any(map(jax.export.is_symbolic_dim, x.shape)):
            return dispatch.dense(x, routes, kernels), means
        if self.capacity is None or not train:
            return dispatch.dropless(x, routes, kernels), means
        y, dropped = dispatch.limited(x, routes, kernels, self.capacity)
        return y, means | {DROPPED: Mean(dropped / self.top_k, means[LOAD].weight)}

    def _logits(self, x: jax.Array) -> jax.Array:
        """Returns the router logits, float32 [batch, length, experts]."""
        # The router is replicated: it is small, and every token needs all of its logits.
        router = Linear("btd,d_->bt_", (x.shape[-1], self.experts), bias=False, dtype="float32", name="router")
        with jax.default_matmul_precision("highest"):
            return router(x)

    def _kernels(self, embed: int, dtype: DType) -> Kernels:
        width, kind = self.inner(embed), compute_dtype(dtype)

        def kernel(name, axes, rows, columns):
            shape = (self.experts, rows, columns)
            return ExpertKernel(axes, shape, name=name)().astype(kind)

        gate = kernel("gate", "edf", embed, width) if self.gated else None
        up = kernel("up", "edf", embed, width)
        return Kernels(gate, up, kernel("down", "efd", width, embed), self.activation)

    def _losses(self, logits, probabilities, chosen, counted) -> dict[str, Mean]:
        """Returns the auxiliary losses and the metric `LOAD` (the share of choices that go to the busiest expert),
        keyed by name. Each is a `Mean`: a sum over tokens, and the number of tokens to divide it by.

        Args:
          logits: router logits, [batch, length, experts].
          probabilities: softmax of the logits.
          chosen: indices of the chosen experts, [batch, length, top_k].
          counted: 1 for tokens to count, 0 for padding and repetitions of a token, [batch, length].
        """
        chosen, counted = whole(chosen), whole(counted)
        choices = jnp.sum(chosen[..., None] == jnp.arange(self.experts), axis=2, dtype=jnp.float32)
        number = jnp.sum(counted)

        def share(values):
            """Returns the mean of `values` [batch, length, experts] over all counted tokens, [experts]."""
            values = jnp.einsum("bt,bte->e", counted, whole(values), precision="highest")
            return values / (number + (number == 0))

        load = share(choices)
        means = {LOAD: Mean(number * jnp.max(load) / self.top_k, number)}
        if self.balance_weight:
            loss = self.balance_weight * self.experts * jnp.sum(load * share(probabilities))
            means[BALANCE] = Mean(number * loss, number)
        if self.z_weight:
            square = jnp.square(jax.nn.logsumexp(logits, axis=-1))
            means[ROUTER_Z] = Mean(self.z_weight * jnp.sum(whole(square) * counted), number)
        return means


class ExpertKernel(nn.Module):
    """Parameter that contains the kernels of one linear layer for all experts, float32 [experts, inputs, outputs]."""

    axes: str
    """One letter per axis of the kernel, which determines the sharding (see `sharding.AXES`): `edf` for (experts,
    embed, mlp), or `efd` for (experts, mlp, embed).
    """
    shape: tuple[int, int, int]
    """Number of experts, inputs and outputs."""

    @nn.compact
    def __call__(self) -> jax.Array:
        init = truncated_normal((3 * self.shape[1]) ** -0.5)
        return self.param("kernel", metadata.with_axes(init, self.axes, contracted=1), self.shape)
