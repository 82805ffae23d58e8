"""Small models on meshes of any shape: their parameters and rows laid on them, and their loss and gradients there."""

import functools

import flax.linen as nn
import jax
import numpy as np
from small_bert import noisy_params

from jaxformer.parallel import sharding
from jaxformer.parallel.parameter_shards import state_shardings

VOCAB, ROWS, LENGTH = 64, 8, 12


def laid(model, shape, batch):
    """The mesh, the parameters of a model laid on it, and a batch of `ROWS` rows, which may have other arrays too."""
    mesh = sharding.make_mesh(shape)
    inputs = {name: batch[name][:1] for name in model.inputs() if name in batch}
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))["params"]
    params = jax.device_put(noisy_params(model, **inputs), state_shardings(boxed, mesh))
    return mesh, params, sharding.global_batch(batch, sharding.local_rows(ROWS, mesh), ROWS, mesh)


def inputs_of(model: nn.Module):
    """Images, or packed rows of random tokens, as the model takes them."""
    rng = np.random.default_rng(0)
    if "images" in model.inputs():
        return {"images": rng.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8)}
    inputs = {"tokens": rng.integers(0, VOCAB, (ROWS, LENGTH))}
    inputs["segments"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH)))[:, ::-1].copy()
    if "inputs" in model.inputs():
        inputs |= {"inputs": inputs["tokens"][:, ::-1].copy(), "input_segments": inputs["segments"]}
    return inputs


@functools.partial(jax.jit, static_argnums=0)
def gradients(model, params, inputs):
    """A loss of the hidden vectors and of all auxiliary means, these means, and the gradients."""

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        output = model.apply({"params": params}, **inputs, train=True, rngs=rngs)
        hidden = output.hidden * inputs["segments"][..., None].astype(bool) if "segments" in inputs else output.hidden
        auxiliary = sum(mean.value for mean in output.means.values())
        return (hidden * np.sin(np.arange(hidden.shape[-1]))).mean() + auxiliary, output.means

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def on(model, shape):
    """The loss, the means and the gradients on a mesh, as NumPy arrays."""
    mesh, params, inputs = laid(model, shape, inputs_of(model))
    with sharding.use(mesh, shape):
        (loss, means), gradient = gradients(model, params, inputs)
    return jax.device_get((loss, means, gradient))
