"""Metadata of parameters from their initialisation, and its users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import small_transformer

from jaxformer.layers.linear import Linear
from jaxformer.layers.lora import Lora
from jaxformer.models.bert import Bert
from jaxformer.models.vit import Vit
from jaxformer.parallel.metadata import Boxed, ParameterInfo, parameter_info
from jaxformer.training.optimizers import Adafactor, Schedule

IMAGE = jnp.zeros((1, 8, 8, 3))
VIT = Vit(small_transformer(norm_position="before"), ("a", "b"), image=8, patch=4)


def boxed(model, *inputs):
    return model.init(jax.random.key(0), *inputs)["params"]


@pytest.mark.slow
def test_parameter_info_names_axes_and_contractions():
    infos = parameter_info(boxed(Bert(small_transformer(), vocab=32, max_length=8), jnp.zeros((1, 8), jnp.int32)))
    assert infos["embeddings/token"] == ParameterInfo("vd")
    assert infos["transformer/blocks/attention/query/kernel"] == ParameterInfo("ldhk", 1)
    output = infos["transformer/blocks/attention/output/kernel"]
    assert output == ParameterInfo("lhkd", 2) and output.is_stacked and output.is_kernel
    assert (output.rows, output.columns) == ((1, 2), (3,))
    assert not infos["transformer/blocks/mlp_norm/scale"].is_kernel


@pytest.mark.slow
def test_patch_kernel_is_the_matrix_that_it_applies():
    """Its path names neither query nor output: guessed from the last two axes, it would be y·x matrices."""
    info = next(info for path, info in parameter_info(boxed(VIT, IMAGE)).items() if info.axes == "yxnd")
    assert info.contracted == 3 and info.matrix_shape((4, 4, 3, 16)) == (48, 16)


def test_adafactor_factors_a_patch_kernel_as_one_matrix():
    params = {"kernel": jnp.ones((16, 16, 3, 256))}
    state = Adafactor(Schedule(1e-2)).transform(10, {"kernel": ParameterInfo("yxnd", 3)}).init(params)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1)
    assert shapes == [(256,), (768,)]


def test_expert_axes_are_not_part_of_a_matrix():
    info = ParameterInfo("ledf", 1)
    assert (info.batch, info.rows, info.columns) == (2, (2,), (3,))
    assert info.matrix_shape((2, 4, 8, 16)) == (2, 4, 8, 16)


@pytest.mark.parametrize(("equation", "shape"), [("bpyxn,yxnd->bpd", (2, 2, 3, 5)), ("bthk,hkd->btd", (2, 3, 5))])
def test_lora_adds_a_product_of_matrices_of_any_kernel(equation, shape):
    inputs = jnp.ones((1, 4, *shape[:-1]))
    base = {"map": boxed(Linear(equation, shape), inputs)}
    lora = Lora(rank=2, alpha=2.0, target_modules=("map/kernel",))
    pairs = jax.tree.map(
        lambda box: box.value, lora.init(jax.random.key(1), base), is_leaf=lambda x: isinstance(x, Boxed)
    )
    a, b = pairs["map"]["a"], jnp.ones_like(pairs["map"]["b"])
    plain = jax.tree.map(lambda box: box.value, base, is_leaf=lambda x: isinstance(x, Boxed))
    merged = lora.merge({"base": plain, "lora": {"map": {"a": a, "b": b}}})
    assert a.shape == (*shape[:-1], 2) and b.shape == (2, shape[-1])
    expected = plain["map"]["kernel"] + jnp.einsum("...r,rd->...d", a, b)
    np.testing.assert_allclose(merged["map"]["kernel"], expected, rtol=1e-6)


def test_parameter_without_axes_is_refused():
    with pytest.raises(ValueError, match="w: its initializer names no axes"):
        parameter_info({"w": jnp.zeros(3)})
