"""Rearranged arrays, and arrays that are made ahead of their use."""

import itertools

import numpy as np
import pytest

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import LazyTensor, ahead
from jaxformer.interop.huggingface.parameters import STRIP, copy_into, flat, read, written
from jaxformer.interop.huggingface.table import ParamMapping, Table, match, tensor_mappings

SHAPE = (3, STRIP + 5, 2 * STRIP)


@pytest.mark.parametrize("ours", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("theirs", list(itertools.permutations(range(3))))
def test_a_copy_is_the_same_whatever_the_order_of_axes_in_memory(ours, theirs):
    def laid_out(order):
        return np.empty([SHAPE[axis] for axis in order], np.float32).transpose(np.argsort(order))

    target, source = laid_out(ours), laid_out(theirs)
    source[...] = np.arange(source.size).reshape(SHAPE)
    copy_into(target, source)
    np.testing.assert_array_equal(target, source)


def test_what_is_made_ahead_comes_in_order_and_none_is_left_out():
    assert list(ahead(iter(range(1, 20)))) == list(range(1, 20))


def test_an_error_comes_where_it_would_have_come():
    def items():
        yield 1
        raise ValueError("no more")

    made = ahead(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="no more"):
        next(made)


def test_layers_without_a_tensor_keep_what_a_norm_starts_with():
    """A stack of three blocks, the first without a norm, and a stack of a single block."""
    rows = (
        ParamMapping("blocks/norm/scale", "layer.{l}.norm.weight", first_layer=1),
        ParamMapping("blocks/norm/bias", "layer.{l}.norm.bias", first_layer=1),
        ParamMapping("blocks/kernel", "layer.{l}.weight", "f d -> d f"),
    )
    table, rng = Table(rows), np.random.default_rng(0)
    for depth in (3, 1):
        shapes = {"blocks/norm/scale": (depth, 4), "blocks/norm/bias": (depth, 4), "blocks/kernel": (depth, 4, 2)}
        wanted = tensor_mappings(table, shapes)
        assert [mapping.name for mapping in wanted if "norm" in mapping.name] == [
            f"layer.{layer}.norm.{part}" for part in ("weight", "bias") for layer in range(1, depth)
        ]
        tensors = {mapping.name: rng.normal(size=mapping.shape).astype(np.float32) for mapping in wanted}
        stored = {
            name: LazyTensor(array.dtype, array.shape, lambda array=array: array) for name, array in tensors.items()
        }
        params = flat(read(table, shapes, stored, np.dtype("float32"), "here"))
        np.testing.assert_array_equal(params["blocks/norm/scale"][0], 1)
        np.testing.assert_array_equal(params["blocks/norm/bias"][0], 0)
        for layer in range(1, depth):
            np.testing.assert_array_equal(params["blocks/norm/scale"][layer], tensors[f"layer.{layer}.norm.weight"])
        again = dict(zip(tensors, written(wanted, params, np.dtype("float32")), strict=True))
        assert all((again[name] == tensors[name]).all() for name in tensors)


def test_a_stored_tensor_of_a_layer_that_has_none_is_refused():
    table = Table((ParamMapping("blocks/norm/scale", "layer.{l}.norm.weight", first_layer=1),))
    stored = {f"layer.{layer}.norm.weight": (4,) for layer in range(2)}
    with pytest.raises(InputError, match=r"not known: layer.0.norm.weight"):
        match(table, {"blocks/norm/scale": (2, 4)}, stored, "here")
