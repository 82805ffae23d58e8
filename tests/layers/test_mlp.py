"""The feed-forward network against its formula and torch's activations."""

import typing

import numpy as np
import pytest
import torch
from small_bert import noisy_params

from jaxformer.layers.mlp import Activation, Mlp, activation

TORCH = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}
X = np.random.default_rng(0).normal(0, 2, (2, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("name", typing.get_args(Activation))
def test_activations_are_torchs(name):
    np.testing.assert_allclose(activation(name)(X), TORCH[name](torch.from_numpy(X)), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_down_of_activation_of_up(bias):
    mlp = Mlp(width=7, activation="relu", bias=bias)
    params = noisy_params(mlp, X)
    up, down = params["up"], params["down"]
    assert ("bias" in up) == ("bias" in down) == bias
    hidden = np.maximum(X @ up["kernel"] + up.get("bias", 0), 0)
    expected = hidden @ down["kernel"] + down.get("bias", 0)
    np.testing.assert_allclose(mlp.apply({"params": params}, X, "float32"), expected, atol=1e-5)


def test_its_width_is_four_times_the_models_by_default():
    assert noisy_params(Mlp(), X)["up"]["kernel"].shape == (6, 24)
