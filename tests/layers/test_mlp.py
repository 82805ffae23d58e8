"""The feed-forward networks against their formulas and torch's activations."""

import typing

import numpy as np
import pytest
import torch
from small_bert import noisy_params

from jaxformer.errors import InputError
from jaxformer.layers.mlp import Activation, GatedMlp, Mlp, activation

TORCH = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
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
    np.testing.assert_allclose(mlp.apply({"params": params}, X, "float32")[0], expected, atol=1e-5)


def test_its_width_is_four_times_the_models_by_default():
    assert noisy_params(Mlp(), X)["up"]["kernel"].shape == (6, 24)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_down_of_the_gates_activation_times_up(name, bias):
    mlp = GatedMlp(width=7, activation=name, bias=bias)
    params = noisy_params(mlp, X)
    assert {"bias" in params[part] for part in ("gate", "up", "down")} == {bias}
    gate, up = (X @ params[part]["kernel"] + params[part].get("bias", 0) for part in ("gate", "up"))
    hidden = TORCH[name](torch.tensor(np.asarray(gate))).numpy() * up
    expected = hidden @ params["down"]["kernel"] + params["down"].get("bias", 0)
    np.testing.assert_allclose(mlp.apply({"params": params}, X, "float32")[0], expected, atol=1e-5)


@pytest.mark.parametrize(("embed", "width"), [(6, 32), (96, 256), (97, 288), (768, 2048), (512, 1376)])
def test_a_gated_one_has_by_default_as_many_weights_in_whole_vectors(embed, width):
    params = noisy_params(GatedMlp(), np.zeros((1, 1, embed), np.float32))
    assert {part: params[part]["kernel"].shape for part in params} == {
        "gate": (embed, width),
        "up": (embed, width),
        "down": (width, embed),
    }
    assert 0 <= width - 8 * embed / 3 < 32


@pytest.mark.parametrize("kind", [Mlp, GatedMlp])
def test_an_impossible_width_is_refused(kind):
    with pytest.raises(InputError, match=r"mlp\.width=0: expected at least 1"):
        kind(0)
