"""Attention pooling against PyTorch's attention with one query."""

import jax
import numpy as np
import torch
from small_bert import noisy_params

from jaxformer.layers.attention_pooling import AttentionPooling
from jaxformer.layers.mlp import Mlp

X = np.random.default_rng(0).normal(0, 1, (3, 5, 8)).astype(np.float32)


def joined(params, name):
    """The kernel [8, 8] and the bias [8] of one of the four maps."""
    return np.reshape(params[name]["kernel"], (8, 8)), np.reshape(params[name]["bias"], 8)


def test_it_is_torchs_attention_of_the_query_and_a_residual_mlp():
    layer = AttentionPooling(heads=2, mlp=Mlp(12))
    params = jax.device_get(noisy_params(layer, X))
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    kernels, biases = zip(*(joined(params["attention"], name) for name in ("query", "key", "value")), strict=True)
    output_kernel, output_bias = joined(params["attention"], "output")
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.from_numpy(np.concatenate([kernel.T for kernel in kernels])))
        attention.in_proj_bias.copy_(torch.from_numpy(np.concatenate(biases)))
        attention.out_proj.weight.copy_(torch.from_numpy(output_kernel.T.copy()))
        attention.out_proj.bias.copy_(torch.from_numpy(output_bias))
        query = torch.from_numpy(np.tile(params["query"], (3, 1, 1)))
        y = attention(query, torch.from_numpy(X), torch.from_numpy(X))[0].numpy()[:, 0]
    centred = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    read = centred * params["norm"]["scale"] + params["norm"]["bias"]
    up = np.asarray(jax.nn.gelu(read @ params["mlp"]["up"]["kernel"] + params["mlp"]["up"]["bias"], approximate=False))
    expected = y + up @ params["mlp"]["down"]["kernel"] + params["mlp"]["down"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, X), expected, atol=1e-5)
