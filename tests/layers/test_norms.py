"""Norms against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_bert import noisy_params

from jaxformer.layers.norms import HeadRMSNorm, LayerNorm, RMSNorm

CASES = [LayerNorm(1e-12), LayerNorm(1e-2), LayerNorm(1e-6, bias=False), RMSNorm(1e-6), RMSNorm(1e-2)]
CASES += [HeadRMSNorm(1e-3), RMSNorm(1e-5, zero_centered=True)]
each_norm = pytest.mark.parametrize("norm", CASES, ids=lambda norm: f"{type(norm).__name__}-{norm.epsilon}")


def torch_norm(norm, x, params):
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    x = torch.tensor(x, requires_grad=True)
    if isinstance(norm, RMSNorm):
        factor = 1 + tensors["scale"] if norm.zero_centered else tensors["scale"]
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], factor, norm.epsilon)
    else:
        y = torch.nn.functional.layer_norm(x, x.shape[-1:], tensors["scale"], tensors.get("bias"), norm.epsilon)
    y.sin().sum().backward()
    return y.detach().numpy(), x.grad.numpy(), {name: tensor.grad.numpy() for name, tensor in tensors.items()}


@each_norm
@pytest.mark.parametrize("width", [7, 32])
def test_values_and_gradients_are_torchs(norm, width):
    x = np.random.default_rng(width).normal(1, 3, (2, 5, width)).astype(np.float32)
    params = noisy_params(norm, x)
    y, dx, dparams = torch_norm(norm, x, params)
    np.testing.assert_allclose(norm.apply({"params": params}, x), y, atol=1e-5)
    ours = jax.grad(lambda params, x: jnp.sin(norm.apply({"params": params}, x)).sum(), (0, 1))(params, x)
    np.testing.assert_allclose(ours[1], dx, atol=2e-5)
    assert ours[0].keys() == dparams.keys()
    for name, gradient in dparams.items():
        np.testing.assert_allclose(ours[0][name], gradient, atol=2e-5)


@each_norm
def test_bfloat16_is_normalised_in_float32(norm):
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 64)), jnp.bfloat16)
    params = noisy_params(norm, x)
    y = norm.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    exact = norm.apply({"params": params}, x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, exact)


def test_a_great_mean_does_not_drown_the_variance():
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    norm = LayerNorm(1e-12)
    params = noisy_params(norm, x)
    apart = norm.apply({"params": params}, x + np.float32(4096))
    np.testing.assert_allclose(apart, norm.apply({"params": params}, x), atol=2e-3)


def test_the_norm_of_heads_has_their_axis():
    boxes = jax.eval_shape(HeadRMSNorm().init, jax.random.key(0), np.zeros((2, 3, 4)))["params"]
    assert boxes["scale"].letters == "k"


@pytest.mark.parametrize("kind", [RMSNorm, HeadRMSNorm])
def test_zero_centered_norm_starts_as_one_that_is_not(kind):
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    output, variables = kind(zero_centered=True).init_with_output(jax.random.key(0), x)
    assert not variables["params"]["scale"].value.any()
    np.testing.assert_array_equal(output, kind().init_with_output(jax.random.key(0), x)[0])
